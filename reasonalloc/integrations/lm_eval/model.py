"""The model "reasonalloc" of lm-evaluation-harness."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    from reasonalloc.integrations.lm_eval.arguments import INSTALL

    raise ModuleNotFoundError(
        f"lm-evaluation-harness or its Hugging Face part is missing ({error}): {INSTALL}"
    ) from error
from tqdm.auto import tqdm

from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.compat import cache_argument
from reasonalloc.integrations.lm_eval.arguments import ArgumentError, check
from reasonalloc.integrations.lm_eval.forcing import score
from reasonalloc.lab.models import load
from reasonalloc.protocols import Model, Tokenizer

_LOG = logging.getLogger(__name__)

Request = tuple[tuple[str, str] | None, list[int], list[int]]


@dataclass
class CacheFigures:
    """What the caches of a run did. generated: caches that text was generated with; slots are evicted ones."""

    generated: int = 0
    generated_with_eviction: int = 0
    evicted_slots: int = 0
    peak_bytes: int = 0
    scored_tokens: int = 0
    scored_after_eviction: int = 0

    def add(self, cache: ReasonAllocCache) -> bool:
        """Whether the cache evicted anything."""
        stats = cache.stats()
        self.evicted_slots += stats["evicted"]
        self.peak_bytes = max(self.peak_bytes, stats["peak_bytes"])
        return bool(stats["evicted"])


@register_model("reasonalloc")
class ReasonAllocLM(HFLM):
    """lm_eval's Hugging Face model with a cache inside a budget: every batch gets a fresh one.

    pretrained: a hub name, a folder, a name that `reasonalloc.lab.models.load` knows (smollm2), or a model with its
        tokenizer. dtype: float32, bfloat16 or float16. device: where a model that is loaded lies (cpu, cuda, ...).
        batch_size: a number; rows are padded on the left and never see each other.
    loglikelihood: how texts are scored. "cache": as in decoding; the context is the prefill, attended to in full and
        then cut to the budget, and the continuation goes in token by token, so what eviction costs is in the figure.
        Its first token is predicted by the prefill and thus by full attention: tasks whose choices are one token long
        (MMLU's letters) cannot show what a cache loses. "full": lm_eval's single forward pass without a cache, faster,
        and blind to the cache. Method "full" always takes the single pass.
    settings: the fields of `ra.Config` by name (method, budget, ratio, interval, ...; profile: a WaveProfile or its
        file) and lm_eval's own options in `arguments.PASSED_ON`.

    Results say under config -> reasonalloc what the caches did; where nothing was evicted a warning says so too.
    Raises ArgumentError before the model is loaded for arguments that cannot be used.
    """

    def __init__(
        self,
        pretrained: str | Model | None = None,
        tokenizer: Tokenizer | None = None,
        *,
        dtype: str = "float32",
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,  # lm_eval always gives it; it is for batch_size "auto"
        device: str | None = None,
        loglikelihood: str = "cache",
        **settings: object,
    ) -> None:
        if pretrained is None:
            raise ArgumentError("give pretrained=NAME: a hub name, a folder or smollm2")
        arguments = check(dtype=dtype, batch_size=batch_size, loglikelihood=loglikelihood, settings=settings)
        label = ""
        if isinstance(pretrained, str):
            if tokenizer is not None:
                raise ArgumentError(f"a tokenizer goes with a model, pretrained={pretrained!r} brings its own")
            try:
                pretrained, tokenizer, label = load(pretrained, dtype, _device_map(device))
            except (ValueError, ModuleNotFoundError) as error:
                raise ArgumentError(str(error)) from error
        elif tokenizer is None:
            raise ArgumentError(f"a tokenizer is needed beside a {type(pretrained).__name__}")
        with _quiet():
            super().__init__(
                pretrained=pretrained,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=arguments.rows,
                **arguments.passed_on,
            )
        self.cache_config, self.label, self.figures = arguments.config, label, CacheFigures()
        self._single_pass = arguments.scored == "full" or arguments.config.resolve().unlimited
        ReasonAllocCache(self.model, self.cache_config)  # a config that does not fit fails here

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **options: object
    ) -> torch.Tensor:
        cache = ReasonAllocCache(self.model, self.cache_config)
        output: torch.Tensor = super()._model_generate(context, max_length, stop, **cache_argument(cache), **options)
        self.figures.generated += 1
        self.figures.generated_with_eviction += self.figures.add(cache)
        return output

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if self._single_pass:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)  # type: ignore[no-any-return]
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        # Contexts of about one length side by side, so that little is padding; the longest first, as lm_eval does.
        order = sorted(range(len(requests)), key=lambda i: (-len(requests[i][1]), -len(requests[i][2])))
        rows = override_bs or self.batch_size
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests")
        for start in range(0, len(order), rows):
            batch = order[start : start + rows]
            cache = ReasonAllocCache(self.model, self.cache_config)
            scores = score(self.model, cache, [self._fit(requests[i]) for i in batch])
            self.figures.add(cache)
            for i, own in zip(batch, scores, strict=True):
                answers[i] = (own.log_prob, own.greedy)
                self.figures.scored_tokens += len(requests[i][2])
                self.figures.scored_after_eviction += own.after_eviction
                if requests[i][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], answers[i])
            bar.update(len(batch))
        bar.close()
        return answers

    def _fit(self, request: Request) -> tuple[list[int], list[int]]:
        """(context, continuation), the context shortened from the left to the model's length."""
        _, context, continuation = request
        if len(continuation) > self.max_length:
            raise ValueError(f"a text of {len(continuation)} tokens is longer than the model's {self.max_length}")
        return context[-(self.max_length + 1 - len(continuation)) :], continuation  # the last token is never fed

    def get_model_info(self) -> dict[str, object]:
        """lm_eval writes this beside the results, at the end of a run."""
        figures = self.figures
        if not self.cache_config.resolve().unlimited:
            if figures.generated and not figures.generated_with_eviction:
                _LOG.warning(
                    "no generation evicted anything, texts are those of a full cache: is the budget too large?"
                )
            if figures.scored_tokens and not figures.scored_after_eviction:
                _LOG.warning(
                    "no scored token came after an eviction, log-likelihoods are those of a full cache: continuations"
                    " of one token, or a budget that holds everything?"
                )
        info: dict[str, object] = super().get_model_info()
        info["model_sha"] = getattr(self.config, "_commit_hash", None) or ""
        scored = "full attention, one pass" if self._single_pass else "through the cache"
        info["reasonalloc"] = {
            "model": self.label,
            "config": self.cache_config.settings(),
            "loglikelihood": scored,
            "caches": asdict(figures),
        }
        return info


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm_eval's warnings that a model given as an object ignores the options of loading."""
    log = logging.getLogger("lm_eval.models.huggingface")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _device_map(device: str | None) -> str | None:
    """lm_eval's command says cuda:0 when it was given nothing, also where there is none."""
    return None if device == "cuda:0" and not torch.cuda.is_available() else device
