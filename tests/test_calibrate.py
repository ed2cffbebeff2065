"""ra.calibrate against the same statistics taken from the model's own projections, and the file it is kept in."""

import models
import numpy as np
import pytest
import tiny
import torch

import reasonalloc as ra
from reasonalloc.files import parse_json
from reasonalloc.hf.compat import budgeted_layers
from reasonalloc.hf.moments import Tails
from reasonalloc.hf.rotation import find_rotations

TEXTS = ["a text of some words, not too short " * 5, "another " * 11]


def calibrated(model, **options):
    return ra.calibrate(model, models.Words(), TEXTS, **{"progress": False, **options})


def before_rope(model, texts, length):
    """(queries, keys, values) [heads, T, D] of each layer and piece, as the layer's projections and norms give them."""
    found = {}
    for text in texts:
        every = models.Words()(text).input_ids
        for begin in range(0, every.shape[1], length):
            ids, hooks = every[:, begin : begin + length], []
            if ids.shape[1] < 2:
                continue
            for i, layer in enumerate(model.model.layers):
                own = layer.self_attn
                for name in ("q", "k", "v"):
                    module = getattr(own, f"{name}_norm", None) or getattr(own, f"{name}_proj")

                    def hook(module, inputs, output, key=(i, name), size=own.head_dim):
                        x = output if output.ndim == 4 else output.view(*output.shape[:2], -1, size)
                        found.setdefault(key, []).append(x[0].transpose(0, 1).double())

                    hooks.append(module.register_forward_hook(hook))
            with torch.no_grad():
                model(input_ids=ids)
            for hook in hooks:
                hook.remove()
    return found


@pytest.mark.parametrize("name", ["llama", "llama-mqa", "qwen2", "qwen3"])
@pytest.mark.parametrize(("length", "chunk"), [(4096, 512), (50, 7)])
def test_statistics_are_those_before_rope(name, length, chunk):
    model = models.tiny(name)
    own = before_rope(model, TEXTS, length)
    calibration = calibrated(model, length=length, chunk=chunk)
    for i, layer in calibration.layers.items():
        q, k, v = (own[i, x] for x in "qkv")
        pairs = layer.frequency.numel()
        every = torch.cat(q, 1)
        lengths = torch.hypot(every[..., :pairs], every[..., pairs:]).mean(1)
        torch.testing.assert_close(layer.query_mean.double(), every.mean(1), atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(layer.query_length.double(), lengths, atol=2e-4, rtol=1e-4)
        for found, limits, pieces in (
            (layer.key_moment, layer.key_range, k), (layer.value_moment, layer.value_range, v)
        ):  # fmt: skip
            whole, rest = torch.cat(pieces, 1), torch.cat([x[:, 1:] for x in pieces], 1)
            moment = whole.transpose(1, 2) @ whole / whole.shape[1]
            torch.testing.assert_close(found.double(), moment, atol=2e-4, rtol=1e-3)
            quantiles = torch.quantile(rest, torch.tensor([0.005, 0.995]).double(), dim=1)
            torch.testing.assert_close(limits.double(), quantiles, atol=2e-4, rtol=1e-3)


def test_fisher_is_the_squared_gradient():
    """By finite differences of the loss by one channel of a layer's values and, turned back, of its keys."""
    model = models.build("llama", torch.float64)
    text = ["some words to learn "]
    layer = ra.calibrate(model, models.Words(), text, for_="fisher", progress=False).layers[1]
    ids = models.Words()(text[0]).input_ids
    own = model.model.layers[1].self_attn
    for name, module, found in (("key", own.k_proj, layer.key_fisher), ("value", own.v_proj, layer.value_fisher)):
        for head, channel in ((0, 1), (1, 5)):
            squares = 0.0
            for token in range(ids.shape[1]):
                losses = []
                for step in (3e-3, -3e-3):  # norms are float32, whatever the model is

                    def hook(module, inputs, output, step=step, token=token, at=head * own.head_dim + channel):
                        output = output.clone()
                        output[0, token, at] += step
                        return output

                    handle = module.register_forward_hook(hook)
                    with torch.no_grad():
                        logits = model(input_ids=ids).logits[0, :-1]
                    handle.remove()
                    losses.append(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")))
                squares += ((losses[0] - losses[1]) / 6e-3) ** 2
            assert float(found[head, channel]) == pytest.approx(squares / ids.shape[1], rel=3e-3), name
    assert all(x.requires_grad and x.grad is None for x in model.parameters())


@pytest.mark.parametrize("tokens", [3, 199, 1000])
def test_tails_are_quantiles(tokens):
    x = torch.randn(2, tokens, 5, generator=torch.Generator().manual_seed(0))
    tails = Tails(tokens)
    for part in x.split(37, 1):
        tails.add(part)
    exact = torch.quantile(x, torch.tensor([0.005, 0.995]), dim=1)
    torch.testing.assert_close(tails.quantiles(), exact)


def test_tails_of_many_tokens_are_bounded():
    tails = Tails(1_000_000)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        tails.add(torch.rand(1, 10_000, 2, generator=generator))
    assert tails.least.shape[1] <= 1024
    np.testing.assert_allclose(tails.quantiles()[:, 0, 0], [0.005, 0.995], atol=1e-3)


# ---- which models ----


ROTATIONS = {
    "llama": (4, False), "qwen3": (8, False), "gemma": (4, False), "phi": (2, False), "stablelm": (1, False),
    "gpt_neox": (1, False), "glm": (2, True), "glm4": (2, True), "cohere": (4, True),
    "gemma3_text": (8, False), "olmo3": (8, False), "qwen3_moe": (4, False), "gemma2": (8, False),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROTATIONS)
def test_rotations_are_found(kind):
    model = tiny.build(kind)
    found = find_rotations(model, budgeted_layers(model))
    for rotation in found.values():
        assert rotation.interleaved == ROTATIONS[kind][1] and rotation.pairs >= 1
        assert (rotation.frequency.abs() > 0).all()


@pytest.mark.parametrize("kind", ["gpt2", "opt", "deepseek_v3"])
def test_models_that_are_refused(kind):
    model = tiny.build(kind)
    with pytest.raises(ValueError, match=rf"layer \d+ of {type(model).__name__}: .*(RoPE|cannot be seen)"):
        find_rotations(model, budgeted_layers(model))


def test_frequencies_that_depend_on_the_length_are_refused():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = models.build("llama", rope_parameters=rope)
    with pytest.raises(ValueError, match="'dynamic', whose frequencies depend on the length"):
        calibrated(model)


def test_scaling_stays_in_the_statistics():
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    model = models.build("llama", rope_parameters=rope)
    layer = calibrated(model, for_="queries").layers[0]
    own = torch.cat(before_rope(model, TEXTS, 4096)[0, "q"], 1)
    assert layer.scaling > 1.1
    torch.testing.assert_close(layer.query_mean.double(), own.mean(1) * layer.scaling, atol=2e-4, rtol=1e-3)


# ---- the file ----


def test_a_file_holds_it_all(tmp_path):
    model = models.tiny("llama")
    calibration = calibrated(model, for_=["queries", "ranges", "wave"])
    assert calibration.holds == ("queries", "ranges", "wave")
    calibration.save(tmp_path / "c")
    again = ra.Calibration.load(tmp_path / "c")
    assert again == calibration and again.digest == calibration.digest and again.path == str(tmp_path / "c")
    assert again.wave == calibration.wave and again.source["text_count"] == 2
    again.check(model, budgeted_layers(model))
    config = ra.Config(method="reasonalloc", budget=24, calibration=tmp_path / "c")
    assert config.profile == calibration.wave
    changed = calibrated(model, for_="queries")
    assert changed != calibration


def test_files_that_are_none(tmp_path):
    path = tmp_path / "c"
    with pytest.raises(OSError):
        ra.Calibration.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no safetensors file"):
        ra.Calibration.load(path)
    from safetensors.torch import safe_open, save_file

    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="its format is None"):
        ra.Calibration.load(path)
    calibrated(models.tiny("llama"), for_="queries").save(path)
    with safe_open(path, "pt") as file:
        metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, value, said in (
        ("layer.0.query_mean", torch.zeros(3), "query_mean must be float32"),
        ("layer.0.query_mean", arrays["layer.0.query_mean"] * float("nan"), "NaN or infinity"),
        ("layer.0.query_mean", arrays["layer.0.query_mean"] + 1, "is damaged"),
        ("layer.9.query_mean", torch.zeros(3), "belongs to nothing"),
        ("other", torch.zeros(1), "belongs to nothing"),
    ):
        save_file({**arrays, name: value}, path, metadata)
        with pytest.raises(ValueError, match=said):
            ra.Calibration.load(path)
    header = parse_json(metadata["header"], "header")
    for changed, said in (("[]", "its header"), ('{"model": 1}', "missing"), (str(header)[:20], "not JSON")):
        save_file(arrays, path, {**metadata, "header": changed})
        with pytest.raises(ValueError, match=said):
            ra.Calibration.load(path)


def test_other_models_are_refused():
    model = models.tiny("llama")
    calibration, managed = calibrated(model, for_="queries"), budgeted_layers(model)
    for other, said in (
        (models.tiny("llama", seed=1), "other weights of the same shape$"),
        (models.tiny("llama", torch.bfloat16, seed=1), "made in float32, here in bfloat16: an adapter"),
        (models.tiny("llama-mqa"), "kv_heads 2"),
        (models.build("llama", rope_parameters={"rope_type": "default", "rope_theta": 500.0}), "rotary embedding"),
    ):
        with pytest.raises(ValueError, match=said):
            calibration.check(other, budgeted_layers(other))
    calibration.check(models.tiny("llama", torch.bfloat16), managed)  # the same weights, rounded


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"for_": "nonsense"}, "for_ takes systems .*'nonsense'"),
        ({"for_": []}, "names nothing"),
        ({"chunk": 1}, "at least 2, got 4096 and 1"),
        ({"length": 0}, "at least 2, got 0 and 512"),
    ],
)
def test_bad_arguments(options, said):
    with pytest.raises(ValueError, match=said):
        calibrated(models.tiny("llama"), **options)
    with pytest.raises(ValueError, match="without two tokens"):
        ra.calibrate(models.tiny("llama"), models.Words(), ["", "a"], progress=False)


# ---- statistics that others published ----


def published(model, path, **metadata):
    """A file as WeianMao/triattention writes it, with the model's own statistics."""
    calibration = calibrated(model, for_="queries")
    stats = {}
    for i, layer in calibration.layers.items():
        for h, (mean, length) in enumerate(zip(layer.query_mean, layer.query_length, strict=True)):
            real, imaginary = mean.chunk(2)
            stats[f"layer{i:02d}_head{h:02d}"] = {
                "q_mean_real": real.clone(), "q_mean_imag": imaginary.clone(), "q_abs_mean": length.clone()
            }  # fmt: skip
    said = {"head_dim": layer.query_mean.shape[1], "rope_style": "half", "num_traces": 1, **metadata}
    torch.save({"metadata": said, "stats": stats}, path)
    return calibration


def test_published_statistics_are_imported(tmp_path):
    model, path = models.tiny("llama"), tmp_path / "stats.pt"
    own = published(model, path)
    found = ra.import_triattention(model, path)
    for i, layer in found.layers.items():
        assert torch.equal(layer.query_mean, own.layers[i].query_mean)
        assert torch.equal(layer.query_length, own.layers[i].query_length)
    found.save(tmp_path / "deep" / "c")  # folders are made, as for other files
    assert ra.Calibration.load(tmp_path / "deep" / "c") == found and found.source["file"] == "stats.pt"
    ra.ReasonAllocCache(model, ra.Config(method="triattention", budget=24, calibration=found))


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_published_files_that_are_refused(tmp_path, capsys):
    model, path = models.tiny("llama"), tmp_path / "stats.pt"
    torch.save({"metadata": Evil(), "stats": {}}, path)
    with pytest.raises(ValueError, match="no file of tensors and plain values"):
        ra.import_triattention(model, path)
    assert capsys.readouterr().out == ""
    (tmp_path / "empty.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.pt is no file of tensors and plain values: EOFError"):
        ra.import_triattention(model, tmp_path / "empty.pt")
    torch.save([1], path)
    with pytest.raises(ValueError, match="needs the entries"):
        ra.import_triattention(model, path)
    published(model, path, head_dim=128)
    with pytest.raises(ValueError, match="heads of size 128, the model's are of 8"):
        ra.import_triattention(model, path)
    published(model, path, rope_style="interleaved")
    with pytest.raises(ValueError, match="'interleaved', supported is 'half'"):
        ra.import_triattention(model, path)
    published(models.build("llama", num_hidden_layers=2), path)
    with pytest.raises(ValueError, match="layer02_head00"):
        ra.import_triattention(model, path)
