"""Trains a LoRA adapter on SmolLM2-135M-Instruct for a task. `make train`, or `python training/train.py -h`.

Seeded and resumable: a run that is killed goes on from its last checkpoint when started again with the same folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from batches import Batch, batch, searches
from loading import loaded
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from targets import Targets, targets

from reasonalloc.fields import build
from reasonalloc.files import parse_json, read_json, replace_text
from reasonalloc.lab import models
from reasonalloc.provenance import provenance

BEFORE = {"task": "ledger", "by_steps": False}  # of runs that were begun before there was another


@dataclass(frozen=True)
class Settings:
    """tokens: of the whole run. task: "ledger" or "search". longest: tokens of a sequence at the end of the curriculum,
    which rises to it from `shortest` over the first `rise` of the run. by_steps: that counts steps instead of tokens
    seen, so that the lengths of coming steps are known. drill: share of steps that are only sums. The rate
    warms up, stays, falls over the last `decay`. first_layer: the adapters of the layers below stay as they are, which
    saves their part of the backward pass."""

    tokens: int
    task: str = "ledger"
    longest: int = 3700
    shortest: int = 300
    batch_tokens: int = 2000
    drill: float = 0.0
    rank: int = 16
    first_layer: int = 0
    rate: float = 1e-3
    warmup_steps: int = 20
    rise: float = 0.6
    decay: float = 0.7
    seed: int = 0
    compiled: bool = False
    by_steps: bool = False


@dataclass
class State:
    """Where a run stands."""

    step: int = 0
    seen: int = 0
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for checkpoint, log and adapter")
    parser.add_argument("--tokens", type=float, default=3e6, help="of the whole run (%(default)g)")
    parser.add_argument("--task", choices=["ledger", "search"], default="ledger", help="(%(default)s)")
    parser.add_argument("--longest", type=int, default=3700, help="sequence, in tokens (%(default)s)")
    parser.add_argument("--shortest", type=int, default=300, help="the longest in the beginning (%(default)s)")
    parser.add_argument("--batch-tokens", type=int, default=2000, help="of a step (%(default)s)")
    parser.add_argument("--drill", type=float, default=0.3, help="share of steps that are only sums (%(default)g)")
    parser.add_argument("--rise", type=float, default=0.6, help="share in which sequences grow (%(default)g)")
    parser.add_argument("--decay", type=float, default=0.7, help="share in which the rate falls (%(default)g)")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate (%(default)g)")
    parser.add_argument("--warmup-steps", type=int, default=20, help="in which the rate rises (%(default)s)")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first-layer", type=int, default=0, help="that is trained (%(default)s)")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the layers: a tenth faster, needs a C++ compiler"
    )
    parser.add_argument("--threads", type=int, help="of torch (all cores)")
    parser.add_argument("--device", metavar="NAME", help="where the model learns: cuda, cuda:1, ... (cpu)")
    parser.add_argument("--loaders", type=int, default=0, help="processes that make coming batches (none)")
    parser.add_argument(
        "--by-steps", action="store_true", help="sequences grow with the steps, not the tokens seen, as loaders need"
    )
    parser.add_argument("--init", type=Path, help="adapter to begin from instead of a fresh one")
    parser.add_argument("--minutes", type=float, help="stop after this time; start again to go on")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = Settings(
        int(args.tokens), args.task, args.longest, args.shortest, args.batch_tokens, args.drill,
        args.rank, args.first_layer, args.rate, args.warmup_steps, args.rise, args.decay, args.seed, args.compile,
        args.by_steps,
    )  # fmt: skip
    try:
        train(args.folder, settings, args.init, args.minutes, args.device, args.loaders)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def train(
    folder: Path,
    settings: Settings,
    init: Path | None = None,
    minutes: float | None = None,
    device: str | None = None,
    loaders: int = 0,
) -> None:
    """Runs or goes on, until all tokens are seen or the time is up.

    device: of torch, None for the CPU; loaders: processes that make coming batches. Both may change when a run goes on.
    ValueError if the folder is of another run, or where loaders cannot know the lengths of coming steps.
    """
    if loaders < 0:
        raise ValueError(f"loaders must be from 0, got {loaders}")
    if loaders and not settings.by_steps and settings.shortest != settings.longest:
        raise ValueError(
            "loaders need sequences that grow with the steps (--by-steps) or not (--shortest as --longest)"
        )
    said = asdict(settings) | {"init": str(init or "")}
    check(folder, said)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    model, tokenizer, label = models.load(dtype="bfloat16", device_map=device)
    place, vocabulary = model.device, model.get_output_embeddings().weight.shape[0]
    model = get_peft_model(
        model, LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules="all-linear")
    )
    if init is not None:
        begin_from(init, model)
    learned = {name: x for name, x in model.named_parameters() if x.requires_grad}
    for name, x in list(learned.items()):
        x.data = x.data.to(torch.bfloat16)
        if int(re.search(r"layers\.(\d+)\.", name)[1]) < settings.first_layer:
            x.requires_grad_(False)
            del learned[name]
    # The model computes in bfloat16; the optimizer keeps float32 copies, or small steps would be rounded away.
    weights = {name: x.detach().float() for name, x in learned.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=settings.rate, weight_decay=0.0, betas=(0.9, 0.98))
    state = restore(folder, weights, optimizer)
    hand_over(weights, learned)
    if settings.compiled:
        for layer in model.get_base_model().model.layers:
            layer.forward = torch.compile(layer.forward, dynamic=True)
    (folder / "settings.json").write_text(
        json.dumps(said | {"device": str(place)} | provenance(label, settings.seed), indent=1) + "\n", encoding="utf-8"
    )
    coming = loaded(maker(settings, tokenizer), lengths(settings, state), loaders)
    start, before = time.monotonic(), state.seconds
    while state.seen < settings.tokens:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(settings, state.step, state.seen / settings.tokens)
        chosen = next(coming)
        figures = update(model, targets(chosen, vocabulary).to(place), weights, learned, optimizer)
        loss, right, norm = figures.tolist()  # the only wait for a GPU
        state.step, state.seen = state.step + 1, state.seen + chosen.tokens
        state.seconds = before + time.monotonic() - start
        line = {
            **asdict(state), "loss": round(loss, 5), "right": round(right, 5), "norm": round(norm, 4),
            "rate": optimizer.param_groups[0]["lr"], "length": chosen.inputs.shape[1], "rows": len(chosen.inputs),
            "dials": list(asdict(chosen.dials).values()) if chosen.dials else settings.task.replace("ledger", "sums"),
        }  # fmt: skip
        with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        told = f"loss {loss:.4f}, right {right:.2%}"
        print(f"{state.step} {state.seconds:.0f} s, {state.seen} tokens, {told}", flush=True)
        stop = minutes is not None and time.monotonic() - start > 60 * minutes
        if state.step % 50 == 0 or stop or state.seen >= settings.tokens:
            save_adapter(model, folder / "adapter")  # first: a checkpoint at the end is not gone on from
            keep(folder, weights, optimizer, state)
        if stop:
            break


def rate_at(settings: Settings, step: int, share: float) -> float:
    """Warm-up, level, then down to 2 % along a half cosine."""
    past = max(0.0, (share - (1 - settings.decay)) / settings.decay)
    level = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * past))
    return settings.rate * min(1, (step + 1) / settings.warmup_steps) * level


def lengths(settings: Settings, state: State) -> Iterator[tuple[int, int]]:
    """(step, the longest sequence in it) of all steps from where the run stands."""
    for step in itertools.count(state.step):
        seen = step * settings.batch_tokens if settings.by_steps else state.seen
        share = min(1.0, seen / settings.tokens / settings.rise)
        yield step, int(settings.shortest + (settings.longest - settings.shortest) * share)


def maker(settings: Settings, tokenizer: Any) -> Callable[[int, int], Batch]:
    """Makes the batch of (step, longest)."""
    make = searches if settings.task == "search" else batch
    return partial(make, tokenizer, settings.seed, tokens=settings.batch_tokens, drill=settings.drill)


def update(
    model: Any,
    given: Targets,
    weights: dict[str, torch.Tensor],
    learned: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> torch.Tensor:
    """One step, all of it where the model lies; [loss, share of right tokens, norm of the gradient] there."""
    loss, right = learn(model, given)
    for name, x in learned.items():
        weights[name].grad, x.grad = x.grad.float(), None
    norm = torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
    optimizer.step()
    hand_over(weights, learned)
    return torch.stack([loss, right, norm])


def learn(model: Any, given: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of one batch; (loss, share of the chain's tokens that were the likeliest), both among the rivals."""
    inner = model.get_base_model()
    # No mask: sequences are padded on the right, so a causal model does not see the padding, and attention is fused.
    hidden = inner.model(input_ids=given.inputs, use_cache=False).last_hidden_state.flatten(0, 1)[given.places]
    logits = (hidden @ inner.lm_head.weight[given.rivals].T).float()
    losses = torch.nn.functional.cross_entropy(logits, given.aims, reduction="none")
    ((losses * given.weights).sum() / given.weights.sum()).backward()
    return losses.detach().mean(), (logits.argmax(-1) == given.aims).float().mean()


def hand_over(weights: dict[str, torch.Tensor], learned: dict[str, torch.nn.Parameter]) -> None:
    """The optimizer's weights, rounded, to the model."""
    for name, x in weights.items():
        learned[name].data.copy_(x)


def keep(folder: Path, weights: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer, state: State) -> None:
    """Writes the checkpoint, whole or not at all."""
    tensors = {f"weight/{name}": x.detach() for name, x in weights.items()}
    for name, x in weights.items():
        tensors |= {f"{key}/{name}": optimizer.state[x][key] for key in ("exp_avg", "exp_avg_sq")}
    part = folder / "checkpoint.tmp"
    save_file(tensors, part, metadata={"state": json.dumps(asdict(state))})
    part.replace(folder / "checkpoint.safetensors")


def check(folder: Path, said: dict[str, Any]) -> None:
    """A run goes on with the settings that it began with; only how long and how fast it runs may change."""
    path = folder / "settings.json"
    if not (folder / "checkpoint.safetensors").is_file() or not path.is_file():
        return
    given = read_json(path, "file of settings")
    given = {**BEFORE, **given}
    other = [k for k in said if k not in ("tokens", "compiled") and given.get(k) != said[k]]
    if other:
        told = "; ".join(f"{k} {given.get(k)!r}, now {said[k]!r}" for k in other)
        raise ValueError(f"{folder} holds a run with other settings ({told}): take another folder")


def restore(folder: Path, weights: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> State:
    """Reads the checkpoint into weights and optimizer, if there is one; forgets log lines after it."""
    path = folder / "checkpoint.safetensors"
    if not path.is_file():
        (folder / "log.jsonl").unlink(missing_ok=True)
        return State()
    with safe_open(path, "pt") as file:
        state = build(State, parse_json(file.metadata()["state"], str(path)), str(path))
        for name, x in weights.items():
            x.data.copy_(file.get_tensor(f"weight/{name}"))
            optimizer.state[x] = {
                key: file.get_tensor(f"{key}/{name}").to(x.device) for key in ("exp_avg", "exp_avg_sq")
            }
            optimizer.state[x]["step"] = torch.tensor(float(state.step))
    log = folder / "log.jsonl"
    lines = log.read_text(encoding="utf-8").split("\n")[: state.step]  # a line is a step; a kill may tear the last
    replace_text(log, "".join(x + "\n" for x in lines))
    return state


def begin_from(adapter: Path, model: Any) -> None:
    """Takes another adapter's weights; its shapes must be ours."""
    given = load_file(adapter / "adapter_model.safetensors")
    for name, x in model.named_parameters():
        if x.requires_grad:
            x.data.copy_(given[name.replace(".default", "")])


def save_adapter(model: Any, folder: Path) -> None:
    """The adapter in bfloat16, as peft reads it."""
    model.save_pretrained(folder)
    path = folder / "adapter_model.safetensors"
    save_file({k: v.to(torch.bfloat16) for k, v in load_file(path).items()}, path, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
