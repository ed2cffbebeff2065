"""The training loop of gates: RLKV (arXiv 2510.08525), or DuoAttention's distillation (2410.10819), the cheap control.

Differs from RLKV's public code, knowingly: gates in float32, clamped after the step and not before it; sinks + recent
tokens of any number in place of blocks of 128; one update a batch, so that the ratio is 1; no weight decay, which pulls
gates to 0 by itself; the mean reward of the penalty over the batch, not over micro-batches.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save

from reasonalloc.fields import build
from reasonalloc.files import lock_folder, parse_json, read_json, read_text, replace_bytes, replace_text
from reasonalloc.fingerprint import dtype_name, fingerprint
from reasonalloc.hf.decode import Sampling, decode
from reasonalloc.hf.tokens import ends
from reasonalloc.lab import models
from reasonalloc.lab.rlkv import prompts as data
from reasonalloc.lab.rlkv.loss import advantages, penalty, policy_loss
from reasonalloc.lab.rlkv.mixed import Mixture, gate_shape, mixing
from reasonalloc.lab.rlkv.passes import Text, backward_policy, chain_states, check_model, hidden_states, micro_batches
from reasonalloc.lab.rlkv.rollout import batch_of
from reasonalloc.lab.rlkv.settings import Line, Settings
from reasonalloc.policy.gates import write_gates
from reasonalloc.protocols import Model, Tokenizer
from reasonalloc.provenance import provenance

SCHEMA = 1
DUO_WEIGHT = 0.05  # of the mean gate


@dataclass
class State:
    """Where a run stands."""

    step: int = 0
    seconds: float = 0.0


class Trainer:
    """A run in a folder, which is its own until `close`. It goes on from the last step that is whole, so it may be
    killed at any time.

    file: JSON lines of problems and answers; None: ledgers. Raises ValueError if the folder is of another run, or
    another one writes there, or the file has too few problems.
    """

    def __init__(
        self, folder: Path, model: Model, tokenizer: Tokenizer, label: str, settings: Settings, file: str | None = None
    ) -> None:
        check_model(model)
        self.folder, self.model, self.tokenizer, self.label = folder, model, tokenizer, label
        self.settings, self.file = settings, file
        data.check_file(file, settings.pool)
        folder.mkdir(parents=True, exist_ok=True)
        self.close = lock_folder(folder, self)
        try:
            self._start(model, settings)
        except BaseException:
            self.close()
            raise

    def _start(self, model: Model, settings: Settings) -> None:
        self.check()
        for x in model.parameters():
            x.requires_grad_(False)
        self.gates = torch.nn.Parameter(torch.ones(gate_shape(model), device=model.device))
        self.mixture = Mixture(self.gates, settings.sinks, settings.recent, packed=model.device.type != "cpu")
        self.optimizer = torch.optim.AdamW([self.gates], lr=settings.rate, betas=(0.9, 0.999), weight_decay=0.0)
        self.state = State()
        self.lines: list[Line] = []
        self.restore()
        record = self.about | provenance(self.label, settings.seed)
        replace_text(self.folder / "settings.json", json.dumps(record, indent=1) + "\n")

    @cached_property
    def about(self) -> dict[str, Any]:
        """What a run goes on with."""
        weights = models.fingerprint(self.label) if self.label else ""
        given = {"problems": self.file, "dtype": dtype_name(self.model.dtype), "weights": weights}
        return asdict(self.settings) | given

    # ---- the folder ----

    def check(self) -> None:
        """A run goes on with the settings that it began with; only the number of steps may change."""
        path = self.folder / "settings.json"
        if not path.is_file():
            others = [x for x in ("checkpoint.safetensors", "log.jsonl", "prompts.jsonl") if (self.folder / x).exists()]
            if others:
                raise ValueError(f"{self.folder} has {others[0]} and no settings.json: take another folder")
            return
        given = read_json(path, "file of settings")
        if not isinstance(given, dict) or "objective" not in given:
            raise ValueError(f"{path} is not of a training run: take another folder")
        here = {
            key: x for key, x in (self.about | {"model": self.label}).items() if key in given
        }  # older ones say less
        other = [k for k in here if k != "steps" and given[k] != here[k]]
        if other:
            differences = "; ".join(f"{k} {given[k]!r}, now {here[k]!r}" for k in other)
            raise ValueError(f"{self.folder} holds a run with other settings ({differences}): take another folder")

    def restore(self) -> None:
        """Reads the checkpoint, if there is one; log lines after it are forgotten."""
        path, log = self.folder / "checkpoint.safetensors", self.folder / "log.jsonl"
        if not path.is_file():
            log.unlink(missing_ok=True)
            return
        with safe_open(path, "pt") as file:
            self.state = build(State, parse_json(file.metadata()["state"], str(path)), str(path))
            self.gates.data.copy_(file.get_tensor("gates"))
            moments = {key: file.get_tensor(key).to(self.gates.device) for key in ("exp_avg", "exp_avg_sq")}
        self.optimizer.state[self.gates] = {"step": torch.tensor(float(self.state.step)), **moments}
        kept = read_text(log).split("\n")[: self.state.step] if log.is_file() else []
        self.lines = [build(Line, parse_json(x, str(log)), str(log)) for x in kept]
        replace_text(log, "".join(x + "\n" for x in kept))

    def keep(self, line: Line) -> None:
        """The log's line first: one too many is forgotten at the next start, a missing one would be missed."""
        self.lines.append(line)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(asdict(line)) + "\n")
            log.flush()
            os.fsync(log.fileno())  # or a loss of power might leave the checkpoint alone
        moments = self.optimizer.state[self.gates]
        tensors = {"gates": self.gates.detach(), **{key: moments[key] for key in ("exp_avg", "exp_avg_sq")}}
        data_ = save(tensors, metadata={"state": json.dumps(asdict(self.state))})
        replace_bytes(self.folder / "checkpoint.safetensors", data_)

    def values(self) -> npt.NDArray[np.float32]:
        """The gates [layers with a budget, KV heads], in host memory."""
        found: npt.NDArray[np.float32] = self.gates.detach().cpu().numpy()
        return found

    def write(self) -> Path:
        """The gates in the published form, and beside them where they come from, as JSON."""
        names = {"rlkv": "adapter_weights.tsv", "duo": "full_attention_heads.tsv"}
        path = self.folder / names[self.settings.objective]
        text = write_gates(path, self.values())
        record = {
            "schema": SCHEMA,
            "gates": path.name,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "shape": fingerprint(self.model),
            "weights": self.about["weights"],
            "settings": asdict(self.settings) | {"problems": self.file},
            "steps": self.state.step,
            "seconds": round(self.state.seconds, 1),
            "reward": [x.reward for x in self.lines],
            "mean_gate": [x.mean_gate for x in self.lines],
            **provenance(self.label, self.settings.seed),
        }
        replace_text(path.with_suffix(".json"), json.dumps(record, indent=1, default=str) + "\n")
        return path

    # ---- the loop ----

    def run(
        self,
        minutes: float | None = None,
        progress: Callable[[Line], None] | None = None,
        collecting: Callable[[int], None] | None = None,
    ) -> None:
        """Until all steps are made or the time is up. progress: gets every step; collecting: how many prompts of the
        pool there are."""
        s, start, before = self.settings, time.monotonic(), self.state.seconds
        prompts = data.pool(
            self.folder, self.model, self.tokenizer, s.pool, self.file, s.data_seed, s.max_new_tokens, collecting
        )
        begun = time.monotonic()
        while self.state.step < s.steps:
            chosen = data.of_step(prompts, self.state.step, s.steps, s.prompts, s.seed)
            line = self._rlkv_step(chosen) if s.objective == "rlkv" else self._duo_step(chosen)
            self.state.step += 1
            self.state.seconds = before + time.monotonic() - begun
            line.step, line.seconds = self.state.step, round(self.state.seconds, 2)
            self.keep(line)
            if progress:
                progress(line)
            if minutes is not None and time.monotonic() - start > 60 * minutes:
                break

    def _move(self, policy: torch.Tensor | None, penalty_: torch.Tensor) -> tuple[float, float]:
        """One step of the optimizer along both gradients; their norms before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        policy = torch.zeros_like(self.gates) if policy is None else policy
        self.gates.grad = policy + penalty_
        torch.nn.utils.clip_grad_norm_([self.gates], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.gates.clamp_(0, 1)
        return float(policy.norm()), float(penalty_.norm())

    def _line(self, **figures: float) -> Line:
        gates = self.gates.detach()
        given: dict[str, Any] = {f.name: 0.0 for f in fields(Line)} | {"step": 0, "tokens": 0}
        given |= {"mean_gate": float(gates.mean()), "sparsity": float((gates < 0.5).float().mean())}
        rounded: dict[str, Any] = {
            name: x if isinstance(x, int) else float(f"{x:.6g}") for name, x in (given | figures).items()
        }
        return Line(**rounded)

    def _rollouts(self, chosen: list[data.Prompt]) -> tuple[list[Text], list[float], list[list[float]]]:
        """Samples of each prompt, one after the other; their rewards; the log-probabilities that they had."""
        s = self.settings
        keys = [f"{self.state.step}/{i}/{j}" for i in range(len(chosen)) for j in range(s.samples)]
        rows = [(key, chosen[n // s.samples].prompt) for n, key in enumerate(keys)]
        sampling = Sampling(s.temperature, 1.0, s.max_new_tokens, s.seed)
        watched: list[tuple[list[str], torch.Tensor]] = []

        def watch(logits: torch.Tensor, names: Any, picked: Any) -> None:
            scaled = logits.float() / s.temperature
            ids = torch.tensor(picked, device=scaled.device)[:, None]
            logp = scaled.gather(-1, ids)[:, 0] - scaled.logsumexp(-1)
            watched.append((list(names), logp))

        stop = ends(self.model, self.tokenizer)
        with mixing(self.model, self.mixture):
            batch = batch_of(self.model, [ids for _, ids in rows], s.max_new_tokens)
            done = {c.key: c for c in decode(batch, rows, stop, sampling, watch=watch)}
        logprobs: dict[str, list[float]] = {key: [] for key in keys}
        every = torch.cat([logp for _, logp in watched]).tolist()  # one wait for the device, not one a step
        for name, x in zip((name for names, _ in watched for name in names), every, strict=True):
            logprobs[name].append(x)
        texts, rewards = [], []
        for n, key in enumerate(keys):
            chain, prompt = done[key], chosen[n // s.samples]
            text = self.tokenizer.decode(chain.ids, skip_special_tokens=True)
            texts.append(Text(prompt.prompt, tuple(chain.ids), n))
            rewards.append(float(chain.finish == "stop" and data.right(text, prompt)))
        return texts, rewards, [logprobs[key] for key in keys]

    def _rlkv_step(self, chosen: list[data.Prompt]) -> Line:
        s, start = self.settings, time.monotonic()
        texts, rewards, sampled = self._rollouts(chosen)
        middle = time.monotonic()
        lengths = [len(x.chain) for x in texts]
        worth, reward = advantages(rewards, lengths, s.samples, s.advantage), float(np.mean(rewards))
        every, gaps = sum(lengths), []
        self.gates.grad = None
        with mixing(self.model, self.mixture):
            batches = list(micro_batches(texts, s.micro))
            for number, batch in enumerate(batches):
                weights = worth[[x.place for x in batch]]
                # Chains without an advantage have no gradient; one batch is looked at all the same, for the gap.
                if not weights.any() and (number or worth.any()):
                    continue

                def loss(logprobs: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor = weights) -> torch.Tensor:
                    # One update a batch: the policy that sampled is the one that learns.
                    return policy_loss(logprobs, logprobs.detach(), weights.to(rows.device)[rows], s.clip) / every

                with torch.set_grad_enabled(bool(weights.any())):
                    _, logprobs = backward_policy(self.model, batch, loss, s.temperature)
                before = torch.tensor([x for text in batch for x in sampled[text.place]])
                gaps.append((logprobs.cpu() - before).abs())
        cost = torch.autograd.grad(penalty(self.gates, reward, s.beta, s.tau), self.gates)[0]
        policy_norm, penalty_norm = self._move(self.gates.grad, cost)
        return self._line(
            reward=reward, policy_norm=policy_norm, penalty_norm=penalty_norm, gap=float(torch.cat(gaps).mean()),
            tokens=every, rollout_seconds=middle - start, update_seconds=time.monotonic() - middle,
        )  # fmt: skip

    def _duo_step(self, chosen: list[data.Prompt]) -> Line:
        """Mean squared error of the last hidden states of the chains' tokens, and 0.05 times the mean gate."""
        s, start = self.settings, time.monotonic()
        texts = [Text(x.prompt, x.chain, i) for i, x in enumerate(chosen)]
        every, loss = sum(len(x.chain) for x in texts), 0.0
        self.gates.grad = None
        for batch in micro_batches(texts, s.micro):
            with torch.no_grad():
                aim = chain_states(hidden_states(self.model, batch), batch, 0).float()
            with mixing(self.model, self.mixture):
                found = chain_states(hidden_states(self.model, batch), batch, 0).float()
                value = (found - aim).square().mean(-1).sum() / every
                value.backward()
            loss += float(value.detach())
        cost = torch.autograd.grad(DUO_WEIGHT * self.gates.abs().mean(), self.gates)[0]
        policy_norm, penalty_norm = self._move(self.gates.grad, cost)
        return self._line(
            loss=loss, policy_norm=policy_norm, penalty_norm=penalty_norm, tokens=every,
            update_seconds=time.monotonic() - start,
        )  # fmt: skip
