"""Trains a LoRA adapter on SmolLM2-135M-Instruct for a task. `make train`, or `python training/train.py -h`.

Seeded and resumable: a run that is killed goes on from its last checkpoint when started again with the same folder.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from batches import Batch, batch, searches
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reasonalloc.fields import build
from reasonalloc.files import parse_json, read_json, replace_text
from reasonalloc.lab import models
from reasonalloc.provenance import provenance

RIVALS = 4096


@dataclass(frozen=True)
class Settings:
    """tokens: of the whole run. task: "ledger" or "search". longest: tokens of a sequence at the end of the curriculum,
    which rises to it from `shortest` over the first `rise` of the run. drill: share of steps that are only sums, of
    ledger. The rate warms up, stays, falls over the last `decay`. first_layer: the adapters of the layers below stay as
    they are, which saves their part of the backward pass."""

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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first-layer", type=int, default=0, help="that is trained (%(default)s)")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the layers: a tenth faster, needs a C++ compiler"
    )
    parser.add_argument("--threads", type=int, help="of torch (all cores)")
    parser.add_argument("--init", type=Path, help="adapter to begin from instead of a fresh one")
    parser.add_argument("--minutes", type=float, help="stop after this time; start again to go on")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = Settings(
        int(args.tokens), args.task, args.longest, args.shortest, args.batch_tokens, args.drill,
        first_layer=args.first_layer, rise=args.rise, decay=args.decay, rate=args.rate, seed=args.seed,
        compiled=args.compile,
    )  # fmt: skip
    try:
        train(args.folder, settings, args.init, args.minutes)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def train(folder: Path, settings: Settings, init: Path | None = None, minutes: float | None = None) -> None:
    """Runs or goes on, until all tokens are seen or the time is up. ValueError if the folder is of another run."""
    said = asdict(settings) | {"init": str(init or "")}
    check(folder, said)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    model, tokenizer, label = models.load(dtype="bfloat16")
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
        json.dumps(said | provenance(label, settings.seed), indent=1) + "\n", encoding="utf-8"
    )
    start, before = time.monotonic(), state.seconds
    while state.seen < settings.tokens:
        share = state.seen / settings.tokens
        for group in optimizer.param_groups:
            group["lr"] = rate_at(settings, state.step, share)
        longest = int(settings.shortest + (settings.longest - settings.shortest) * min(1.0, share / settings.rise))
        if settings.task == "search":
            chosen = searches(tokenizer, settings.seed, state.step, longest, settings.batch_tokens)
        else:
            chosen = batch(tokenizer, settings.seed, state.step, longest, settings.batch_tokens, settings.drill)
        loss, right = learn(model, chosen)
        for name, x in learned.items():
            weights[name].grad, x.grad = x.grad.float(), None
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        hand_over(weights, learned)
        state.step, state.seen = state.step + 1, state.seen + chosen.tokens
        state.seconds = before + time.monotonic() - start
        line = {
            **asdict(state), "loss": round(loss, 5), "right": round(right, 5), "norm": round(float(norm), 4),
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


def learn(model: Any, chosen: Batch) -> tuple[float, float]:
    """Gradients of one batch; (loss, share of the chain's tokens that were the likeliest), both among `rivals_of`."""
    inner = model.get_base_model()
    labels = chosen.labels[:, 1:]
    counted = labels != -100
    hidden = inner.model(input_ids=chosen.inputs[:, :-1], use_cache=False).last_hidden_state[counted]
    rivals = rivals_of(chosen, inner.lm_head.weight.shape[0])
    logits = (hidden @ inner.lm_head.weight[rivals].T).float()
    aims = torch.searchsorted(rivals, labels[counted])
    weights = chosen.weights[:, 1:][counted]
    losses = torch.nn.functional.cross_entropy(logits, aims, reduction="none")
    ((losses * weights).sum() / weights.sum()).backward()
    return float(losses.detach().mean()), float((logits.argmax(-1) == aims).float().mean())


def rivals_of(chosen: Batch, vocabulary: int) -> torch.Tensor:
    """Tokens that the softmax runs over: those of the batch and RIVALS drawn ones, which saves a seventh of a step."""
    numbers = torch.Generator().manual_seed(chosen.tokens)
    drawn = torch.randint(vocabulary, (RIVALS,), generator=numbers)
    return torch.unique(torch.cat([chosen.inputs.flatten(), drawn]))


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
    given = {"task": "ledger", **given}  # what was begun before there was another
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
            optimizer.state[x] = {key: file.get_tensor(f"{key}/{name}") for key in ("exp_avg", "exp_avg_sq")}
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
