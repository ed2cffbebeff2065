"""Training of gates: mixed attention, its gradient, the objective, a run that is interrupted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from elsewhere import Elsewhere, needs_meta

import reasonalloc as ra
from reasonalloc.hf.compat import cache_argument
from reasonalloc.hf.tokens import left_padded
from reasonalloc.lab.rlkv import prompts as data
from reasonalloc.lab.rlkv import train
from reasonalloc.lab.rlkv.loss import advantages, penalty, policy_loss
from reasonalloc.lab.rlkv.mixed import Mixture, gate_shape, mixing
from reasonalloc.lab.rlkv.passes import Text, backward_policy
from reasonalloc.lab.rlkv.rollout import FixedBatch
from reasonalloc.lab.rlkv.settings import Settings
from reasonalloc.lab.rlkv.train import Trainer
from reasonalloc.policy.gates import read_gates

LENGTHS = (30, 17, 24)


def forward(model, mixture=None, lengths=LENGTHS, seed=0):
    """Logits of each row's own tokens, in a batch padded on the left."""
    rows = [models.prompt(n, seed=seed + i)[0] for i, n in enumerate(lengths)]
    ids, mask = left_padded(rows)
    how = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    if mixture is None:
        logits = model(**how).logits
    else:
        with mixing(model, mixture):
            logits = model(**how).logits
    return [logits[i, -n:] for i, n in enumerate(lengths)]


# ---- Mixed attention -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "llama-mqa", "gemma3"])
def test_open_gates_give_the_stock_logits(name):
    model = models.build(name)
    before = model.config._attn_implementation
    with torch.no_grad():
        got = forward(model, Mixture(torch.ones(gate_shape(model)), 2, 3))
        expected = forward(model)
    assert model.config._attn_implementation == before
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def streaming(model, ids, gates, sinks, recent):
    """Logits of one row by attention written out head by head; gates: [L, H]."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    def attention(module, query, key, value, mask, scaling=None, **options):
        heads, n = key.shape[1], key.shape[2]
        out = torch.zeros_like(query)
        for head in range(query.shape[1]):
            own = head // (query.shape[1] // heads)
            gate = gates[module.layer_idx][own]
            for i in range(n):
                near = [j for j in range(i + 1) if j < sinks or j > i - recent]
                for weight, seen in ((gate, list(range(i + 1))), (1 - gate, near)):
                    w = (key[0, own, seen] @ query[0, head, i] * scaling).softmax(-1)
                    out[0, head, i] += weight * (w @ value[0, own, seen])
        return out.transpose(1, 2), None

    before = model.config._attn_implementation
    AttentionInterface.register("test-streaming", attention)
    AttentionMaskInterface.register("test-streaming", sdpa_mask)
    model.set_attn_implementation("test-streaming")
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    model.set_attn_implementation(before)
    return logits


@pytest.mark.parametrize("gate", [0.0, 0.3, None])
def test_closed_gates_see_sinks_and_recent_tokens(gate):
    model = models.build("llama")
    gates = torch.full((3, 2), gate) if gate is not None else torch.tensor([[0.0, 1.0], [0.5, 0.2], [0.9, 0.1]])
    with torch.no_grad():
        got = forward(model, Mixture(gates, 2, 5))
    for i, n in enumerate(LENGTHS):
        expected = streaming(model, models.prompt(n, seed=i)[0], gates.tolist(), 2, 5)
        torch.testing.assert_close(got[i], expected, rtol=1e-3, atol=1e-4)


def test_a_rollout_is_the_same_attention():
    """Step by step with a stock cache, rows of a batch padded: log-probabilities as of one pass."""
    from transformers import DynamicCache

    model, mixture = models.build("llama"), Mixture(torch.rand(3, 2, generator=torch.manual_seed(0)), 2, 5)
    with torch.no_grad():
        whole = forward(model, mixture, (40, 33))
        ids, mask = left_padded([models.prompt(n, seed=i)[0] for i, n in enumerate((40, 33))])
        cache, got = DynamicCache(config=model.config), []
        with mixing(model, mixture):
            for begin, end in [(0, 20), *((i, i + 1) for i in range(20, 40))]:
                positions = (mask[:, :end].cumsum(-1) - 1).clamp(min=0)[:, begin:]
                part = model(
                    input_ids=ids[:, begin:end], attention_mask=mask[:, :end], position_ids=positions,
                    **cache_argument(cache),
                ).logits  # fmt: skip
                got.append(part)
    got = torch.cat(got, 1)
    for i, n in enumerate((40, 33)):
        torch.testing.assert_close(got[i, -n:], whole[i], rtol=1e-4, atol=1e-4)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"gates have the shape \[2, 2\], the model's is \[3, 2\]"):
        forward(models.tiny(), Mixture(torch.ones(2, 2), 2, 5))
    with pytest.raises(ValueError, match="recent from 1"):
        Mixture(torch.ones(3, 2), 2, 0)


# ---- Gradients and the objective -------------------------------------------------------------------------------------


def test_the_gradient_of_the_gates():
    """Of the whole objective over micro-batches, against finite differences in float64."""
    model = models.build("llama", torch.float64)
    for x in model.parameters():
        x.requires_grad_(False)
    texts = [Text(tuple(models.prompt(9, seed=i)[0].tolist()), tuple(models.prompt(20 + i, seed=9 + i)[0].tolist()), i)
             for i in range(4)]  # fmt: skip
    worth = torch.tensor([1.0, -0.5, 0.25, -2.0])
    rng = torch.Generator().manual_seed(0)
    start = torch.rand(3, 2, generator=rng, dtype=torch.float64)

    def value(gates, learn):
        total = 0.0
        with mixing(model, Mixture(gates, 2, 4)), torch.set_grad_enabled(learn):
            for batch in (texts[:2], texts[2:]):
                own = worth[[x.place for x in batch]]
                total += backward_policy(model, batch, lambda p, r, own=own: -own[r] * p)[0]
        return total

    gates = torch.nn.Parameter(start.clone())
    value(gates, True)
    step = 1e-3  # norms of the model are in float32
    for layer, head in np.ndindex(3, 2):
        ends = []
        for sign in (1, -1):
            moved = start.clone()
            moved[layer, head] += sign * step
            ends.append(value(moved, False))
        assert float(gates.grad[layer, head]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3, abs=1e-3)


def test_the_loss_is_the_plain_formula():
    rng = np.random.default_rng(0)
    new, old, worth = rng.normal(-1, 0.5, 50), rng.normal(-1, 0.5, 50), rng.normal(0, 1, 50)
    expected = []
    for a, b, w in zip(new, old, worth, strict=True):
        ratio = math.exp(a - b)
        expected.append(-min(ratio * w, min(max(ratio, 0.6), 1.4) * w))
    got = policy_loss(*(torch.tensor(x) for x in (new, old, worth)))
    assert got.numpy() == pytest.approx(np.array(expected), abs=1e-12)


def test_advantages():
    rewards, tokens = [1, 0, 1, 1, 1, 1], [10, 30, 20, 20, 10, 10]
    every = np.repeat(np.array(rewards, float) * 10 - 5, tokens)  # as the code: (r - .5) * 10 of each token
    expected = [(10 * r - 5 - every.mean()) / every.std() for r in rewards]
    assert advantages(rewards, tokens, 3).numpy() == pytest.approx(expected, abs=1e-6)
    spread = math.sqrt(2) / 3
    assert advantages(rewards, tokens, 3, "group").numpy() == pytest.approx(
        [1 / 3 / spread, -2 / 3 / spread, 1 / 3 / spread, 0, 0, 0], abs=1e-6
    )
    for by in ("batch", "group"):
        assert not advantages([1, 1, 1, 1], [3, 4, 5, 6], 2, by).any()
        assert not advantages([0, 0, 0, 0], [3, 4, 5, 6], 2, by).any()


def test_the_penalty_follows_the_reward():
    gates = torch.tensor([[0.5, 1.0], [0.0, 0.25]])
    assert float(penalty(gates, 0.8, 0.1, 0.5)) == pytest.approx(0.1 * (math.exp(0.8) - 1) * 1.75 / 4)
    assert float(penalty(gates, 0.5, 0.1, 0.5)) == 0
    assert float(penalty(gates, 0.2, 0.1, 0.5)) == 0


# ---- Runs ------------------------------------------------------------------------------------------------------------


class Digits(models.Words):
    """Decodes a token to a box, so that some chains of a random model are right."""

    chat_template = None

    def __call__(self, text, **how):
        return super().__call__(text[:12], **how)

    def decode(self, ids, **_):
        return f"\\boxed{{{sum(ids) % 2}}}"


SMALL = {"steps": 4, "prompts": 2, "samples": 3, "pool": 6, "sinks": 1, "recent": 4, "max_new_tokens": 12, "beta": 0.5}


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    lines = [{"problem": f"{i} is a number of {'abcdefgh'[i % 8]}", "answer": str(i % 2)} for i in range(64)]
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return str(path)


def trainer(folder, problems, device="cpu", dtype=None, label="", **changes):
    model = models.build("llama").to(device, dtype)
    model.generation_config.eos_token_id = list(range(1, 30))
    return Trainer(folder, model, Digits(), label, Settings(**{**SMALL, **changes}), problems)


@pytest.mark.parametrize("objective", ["rlkv", "duo"])
def test_a_run_that_is_killed_goes_on(tmp_path, problems, objective, monkeypatch):
    whole = trainer(tmp_path / "whole", problems, objective=objective)
    whole.run()
    assert (whole.gates < 1).any()
    assert ((whole.gates >= 0) & (whole.gates <= 1)).all()
    folder, kept = tmp_path / "parts", Trainer.keep
    for killed_at in (1, 2):
        part = trainer(folder, problems, objective=objective)

        def keep(self, line, killed_at=killed_at):
            if self.state.step > killed_at:  # the log is ahead of the checkpoint
                with (self.folder / "log.jsonl").open("a") as log:
                    log.write('{"step": 3, "seco')
                raise KeyboardInterrupt
            kept(self, line)

        monkeypatch.setattr(Trainer, "keep", keep)
        with pytest.raises(KeyboardInterrupt):
            part.run()
        with (folder / "prompts.jsonl").open("a") as lines:
            lines.write('{"id": "torn')
        part.close()
    monkeypatch.setattr(Trainer, "keep", kept)
    last = trainer(folder, problems, objective=objective)
    assert last.state.step == 2
    last.run()
    assert torch.equal(last.gates, whole.gates)
    assert [x.mean_gate for x in last.lines] == [x.mean_gate for x in whole.lines]
    assert [x.reward for x in last.lines] == [x.reward for x in whole.lines]
    path = last.write()
    assert read_gates(path) == pytest.approx(whole.gates.detach().double().numpy(), abs=0)
    said = json.loads(path.with_suffix(".json").read_text())
    assert said["steps"] == 4
    assert said["settings"]["recent"] == 4
    assert len(said["reward"]) == 4
    ra.Config(method="rlkv", options={"gates": str(path)}, window=4)


@needs_meta
@pytest.mark.parametrize("objective", ["rlkv", "duo"])
def test_a_run_goes_on_on_a_device(tmp_path, problems, objective):
    """Nothing of a step is left on the CPU."""
    trainer(tmp_path, problems, objective=objective, steps=2).run()
    with Elsewhere():
        run = trainer(tmp_path, problems, "meta", objective=objective)
        assert run.gates.is_meta and run.state.step == 2
        run.run()
        run.write()
    assert [x.step for x in run.lines] == [1, 2, 3, 4]


def test_samples_are_as_likely_in_training_as_they_were(tmp_path, problems):
    run = trainer(tmp_path / "run", problems)
    run.run()
    assert all(x.gap < 1e-4 for x in run.lines)
    assert any(0 < x.reward < 1 and x.policy_norm > 0 for x in run.lines)


def test_the_rollouts_of_a_gpu_train_the_same_gates(tmp_path, problems, monkeypatch):
    """Their code without the graphs, on a CPU."""
    stock = trainer(tmp_path / "stock", problems)
    stock.run()
    for module in (data, train):
        monkeypatch.setattr(module, "batch_of", FixedBatch)
    fixed = trainer(tmp_path / "fixed", problems)
    fixed.mixture.packed = True
    fixed.run()
    assert [(x.reward, x.tokens) for x in fixed.lines] == [(x.reward, x.tokens) for x in stock.lines]
    assert all(x.gap < 1e-4 for x in fixed.lines)
    assert (fixed.gates < 1).any()
    torch.testing.assert_close(fixed.gates.data, stock.gates.data, rtol=1e-3, atol=1e-3)


def test_another_run_is_refused(tmp_path, problems):
    trainer(tmp_path / "run", problems)
    trainer(tmp_path / "run", problems, steps=9)
    for changes, told in (({"beta": 0.25}, "beta 0.5, now 0.25"), ({"dtype": torch.float64}, "dtype 'float32', now")):
        with pytest.raises(ValueError, match=rf"holds a run with other settings \({told}"):
            trainer(tmp_path / "run", problems, **changes)
    weights = tmp_path / "m" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"before")
    trainer(tmp_path / "other", problems, label=str(weights.parent)).close()
    weights.write_bytes(b"after")
    with pytest.raises(ValueError, match=r"holds a run with other settings \(weights '"):
        trainer(tmp_path / "other", problems, label=str(weights.parent))
    with pytest.raises(ValueError, match="objective must be one of rlkv, duo"):
        Settings(objective="ppo")
    with pytest.raises(ValueError, match="samples must lie between"):
        Settings(samples=0)


def test_models_that_gates_would_be_trained_wrong_for_are_refused_first(tmp_path, problems):
    """Torch's attention leaves sinks and capped logits out; without full attention no gate acts."""
    capped = models.build("llama")
    capped.config.final_logit_softcapping = 30.0
    refused = (
        (models.gpt_oss(torch.zeros(4)), "GptOssAttention has sinks"),
        (models.build("mistral-sliding"), "no gates to train"),
        (capped, "has final_logit_softcapping"),
    )
    for model, told in refused:
        with pytest.raises(ValueError, match=told):
            Trainer(tmp_path / "run", model, Digits(), "", Settings(**SMALL), problems)
        assert not (tmp_path / "run").exists()


def test_a_folder_is_of_one_run_at_a_time(tmp_path, problems):
    first = trainer(tmp_path / "run", problems)
    with pytest.raises(ValueError, match=r"another run writes to .*run: wait for it"):
        trainer(tmp_path / "run", problems)
    first.close()
    with pytest.raises(ValueError, match="other settings") as kept:
        trainer(tmp_path / "run", problems, beta=0.25)
    trainer(tmp_path / "run", problems).close()
    assert kept
    for name, text in (("settings.json", '{"model": "m"}'), ("log.jsonl", "mine"), ("prompts.jsonl", "mine")):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(text)
        with pytest.raises(ValueError, match="take another folder"):
            trainer(tmp_path / name, problems)
        assert (tmp_path / name / name).read_text() == text


def test_a_problem_file_that_does_not_serve_is_said_first(tmp_path, problems):
    for file, told in ((str(tmp_path / "typo.jsonl"), "typo.jsonl"), (problems, "has 64 problems, asked for 65")):
        with pytest.raises((OSError, ValueError), match=told):
            trainer(tmp_path / "run", file, pool=65)
        assert not (tmp_path / "run").exists()
    run = trainer(tmp_path / "run", problems, steps=1)
    run.run()
    run.close()
    whole = Path(problems).read_text().splitlines(keepends=True)
    reworded = [x.replace("is a number", "is no number") for x in whole]
    for text in (whole[:6], [x.replace('"0"', '"2"') for x in whole], reworded):
        Path(problems).write_text("".join(text))
        again = trainer(tmp_path / "run", problems)
        with pytest.raises(ValueError, match=r"is not the problem of .*problems.jsonl any more"):
            again.run()
        again.close()


def test_prompts_grow_longer():
    every = [data.Prompt(str(i), (1,), (2,) * (i + 1), ("1",), (), True) for i in range(9)]
    seen = [[len(x.chain) for x in data.of_step(every, step, 6, 2, 0)] for step in range(6)]
    for third in range(3):
        own = [*seen[2 * third], *seen[2 * third + 1]]
        assert set(own) == {3 * third + 1, 3 * third + 2, 3 * third + 3}
