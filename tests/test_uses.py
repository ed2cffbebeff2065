"""What people do with models and generate: the stock cache's tokens with nothing evicted, and a budget that is kept."""

import inspect
import threading

import models
import pytest
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import DynamicCache, PreTrainedTokenizerFast, pipeline
from transformers.generation.streamers import BaseStreamer

import reasonalloc as ra
from reasonalloc.hf.compat import cache_argument, cache_of

FULL = ra.Config(method="full")
SMALL = ra.Config(method="rkv", budget=24, interval=8, window=4)


def generate(model, ids=None, cache=None, new=30, **options):
    how = {"max_new_tokens": new, "do_sample": False, **options}
    if cache is not None:
        how |= cache_argument(cache)
    return model.generate(models.prompt(60) if ids is None else ids, **how)


def assert_as_stock(model, ids=None, **options):
    """With a cache and in a session; then with a budget."""
    expected = generate(model, ids, **options)
    assert torch.equal(generate(model, ids, ra.ReasonAllocCache(model, FULL), **options), expected)
    with ra.install(model, FULL) as session:
        assert torch.equal(generate(model, ids, **options), expected)
    assert session.last_cache.stats()["steps"]
    cache = ra.ReasonAllocCache(model, SMALL)
    generate(model, ids, cache, **options)
    assert cache.stats()["evicted"]
    assert torch.equal(generate(model, ids, **options), expected)


# ---- Pictures --------------------------------------------------------------------------------------------------------

IMAGE, START, END = 90, 91, 92
PICTURE = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "image_size": 16}


def with_picture(before, tokens, after):
    words = models.prompt(before + after)[0]
    words = words.clamp(max=IMAGE - 1)
    parts = [words[:before], torch.tensor([START]), torch.full((tokens,), IMAGE), torch.tensor([END]), words[before:]]
    return torch.cat(parts)[None]


def seeing(family, config):
    return models.seeded(getattr(transformers, f"{family}ForConditionalGeneration"), config)


@pytest.mark.parametrize("family", ["Qwen2VL", "Qwen2_5_VL"])
def test_qwen_sees(family):
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "in_channels": 3, "patch_size": 4,
              "spatial_merge_size": 2, "temporal_patch_size": 2, "mlp_ratio": 2, "out_hidden_size": 32,
              "intermediate_size": 48, "fullatt_block_indexes": [1], "window_size": 16}  # fmt: skip
    config = getattr(transformers, f"{family}Config")(
        text_config=models._COMMON | {"rope_parameters": rope}, vision_config=vision, image_token_id=IMAGE,
        vision_start_token_id=START, vision_end_token_id=END, video_token_id=93,
    )  # fmt: skip
    model, ids = seeing(family, config), with_picture(30, 4, 20)
    torch.manual_seed(0)
    seen = {"pixel_values": torch.randn(16, 3 * 2 * 4 * 4), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        seen["mm_token_type_ids"] = (ids == IMAGE).long()
    assert_as_stock(model, ids, attention_mask=torch.ones_like(ids), **seen)


def test_llava_sees():
    vision = PICTURE | {"model_type": "clip_vision_model", "num_hidden_layers": 2, "patch_size": 8}
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **models._COMMON}, vision_config=vision, image_token_id=IMAGE,
        image_token_index=IMAGE, image_seq_length=4,
    )  # fmt: skip
    torch.manual_seed(0)
    ids, picture = with_picture(30, 4, 20), torch.randn(1, 3, 16, 16)
    assert_as_stock(seeing("Llava", config), ids, attention_mask=torch.ones_like(ids), pixel_values=picture)


def test_gemma_sees_and_is_asked_again():
    text = models._COMMON | models._GEMMA
    vision = PICTURE | {"model_type": "siglip_vision_model", "num_hidden_layers": 2, "patch_size": 4}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_id=IMAGE, image_token_index=IMAGE,
        boi_token_index=START, eoi_token_index=END,
    )  # fmt: skip
    model, ids = seeing("Gemma3", config), with_picture(30, 4, 20)
    torch.manual_seed(0)
    seen = {"pixel_values": torch.randn(1, 3, 16, 16), "token_type_ids": (ids == IMAGE).long()}
    assert_as_stock(model, ids, **seen)
    texts = []
    for cache in (DynamicCache(config=model.config), ra.ReasonAllocCache(model, FULL)):
        text = generate(model, ids, cache, **seen)
        texts.append(generate(model, torch.cat([text, models.prompt(20).clamp(max=80)], 1), cache))
    assert torch.equal(*texts)


# ---- Ways to generate ------------------------------------------------------------------------------------------------


def test_a_chat_in_a_pipeline():
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(models.VOCAB)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    model, answers = models.build("llama"), []
    chat = [{"role": "user", "content": " ".join(f"w{i}" for i in range(3, 63))}]
    more = [{"role": "user", "content": "w5 w6 w7"}]
    caches = [DynamicCache(config=model.config), *(ra.ReasonAllocCache(model, x) for x in (FULL, SMALL))]
    for cache in caches:
        talk = pipeline("text-generation", model=model, tokenizer=tokenizer)
        how = {"max_new_tokens": 20, "do_sample": False, **cache_argument(cache)}
        first = talk(chat, **how)[0]["generated_text"]
        answers.append(talk(first + more, **how)[0]["generated_text"])
    assert answers[0] == answers[1]
    assert caches[2].stats()["evicted"]


def test_embeddings_in_place_of_tokens():
    model = models.build("llama")
    embeddings = model.get_input_embeddings()(models.prompt(60)).detach()
    how = {"inputs_embeds": embeddings, "max_new_tokens": 30, "do_sample": False}
    expected = model.generate(**how)
    assert torch.equal(model.generate(**how, **cache_argument(ra.ReasonAllocCache(model, FULL))), expected)
    with ra.install(model, SMALL) as session:
        model.generate(**how)
    assert session.last_cache.stats()["evicted"]


def test_early_exit():
    model = models.build("llama")
    try:
        expected = generate(model, assistant_early_exit=1)
    except TypeError as error:
        pytest.skip(f"not in this transformers: {error}")
    cache = ra.ReasonAllocCache(model, FULL)
    assert torch.equal(generate(model, cache=cache, assistant_early_exit=1), expected)
    assert torch.equal(expected, generate(model))


def test_text_is_streamed():
    class Texts(BaseStreamer):
        def __init__(self):
            self.parts, self.ended = [], False

        def put(self, value):
            self.parts.append(value.reshape(-1))

        def end(self):
            self.ended = True

    model, texts = models.build("llama"), Texts()
    made = generate(model, cache=ra.ReasonAllocCache(model, SMALL), streamer=texts)
    assert torch.equal(torch.cat(texts.parts), made[0]) and texts.ended


@pytest.mark.parametrize("config", [FULL, SMALL], ids=["full", "rkv"])
def test_threads_with_a_cache_each(config):
    model, made = models.build("llama"), {}
    texts = [models.prompt(60, seed=seed) for seed in range(4)]
    expected = [generate(model, text, ra.ReasonAllocCache(model, config)) for text in texts]

    def work(i):
        made[i] = generate(model, texts[i], ra.ReasonAllocCache(model, config))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, tokens in enumerate(expected):
        assert torch.equal(made[i], tokens)


def test_positions_that_begin_anew():
    """As in packed texts; what stands where is the caller's to say."""
    model = models.build("llama")
    ids, positions = models.prompt(35), torch.cat([torch.arange(20), torch.arange(15)])[None]
    caches = [DynamicCache(config=model.config), ra.ReasonAllocCache(model, FULL)]
    with torch.no_grad():
        stock, ours = (model(ids, position_ids=positions, **cache_argument(x)).logits for x in caches)
        torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)
        next_stock, next_ours = (
            model(models.prompt(1), position_ids=torch.tensor([[15]]), **cache_argument(x)).logits for x in caches
        )
    torch.testing.assert_close(next_ours, next_stock, rtol=1e-4, atol=1e-4)


def test_rows_without_a_token_and_masks_with_holes():
    model = models.build("llama")
    ids = models.prompt(30, rows=3)
    mask = torch.ones_like(ids)
    mask[0, 20:], mask[1], mask[2, 5:9] = 0, 0, 0
    caches = [DynamicCache(config=model.config), ra.ReasonAllocCache(model, FULL)]
    stock, ours = (models.step(model, x, ids, mask) for x in caches)
    torch.testing.assert_close(ours[mask.bool()], stock[mask.bool()], rtol=1e-4, atol=1e-4)
    assert caches[1].slots()[:, 0].tolist() == [[20, 20], [0, 0], [26, 26]]
    mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    stock, ours = (models.step(model, x, models.prompt(1, rows=3), mask) for x in caches)
    torch.testing.assert_close(ours[[0, 2]], stock[[0, 2]], rtol=1e-4, atol=1e-4)
    alone = model(models.prompt(1, rows=3)[1:2]).logits
    torch.testing.assert_close(ours[1:2], alone, rtol=1e-4, atol=1e-4)


# ---- Weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*quant")
def test_weights_in_int8():
    model = torch.ao.quantization.quantize_dynamic(models.build("llama"), {torch.nn.Linear}, dtype=torch.qint8)
    assert_as_stock(model)


@pytest.mark.parametrize("kind", ["LoraConfig", "IA3Config", "PromptTuningConfig", "PromptEncoderConfig"])
def test_adapters(kind):
    peft = pytest.importorskip("peft")
    own = {
        "LoraConfig": {"init_lora_weights": False},
        "IA3Config": {"init_ia3_weights": False},
        "PromptTuningConfig": {"num_virtual_tokens": 4},
        "PromptEncoderConfig": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    }
    torch.manual_seed(0)
    model = peft.get_peft_model(models.build("llama"), getattr(peft, kind)(task_type="CAUSAL_LM", **own[kind])).eval()
    how = {"input_ids": models.prompt(60), "max_new_tokens": 30, "do_sample": False}
    stock = model.generate(**how, return_dict_in_generate=True)
    with ra.install(model, FULL) as session:
        assert torch.equal(model.generate(**how), stock.sequences)
    assert session.last_cache.get_seq_length() == cache_of(stock).get_seq_length() >= 89
    with ra.install(model, SMALL) as session:
        model.generate(**how)
    assert session.last_cache.stats()["evicted"]


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_weights_that_are_offloaded(where, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model = models.build("llama")
    expected = generate(model)
    small = generate(model, cache=ra.ReasonAllocCache(model, SMALL))
    ra.uninstall(model)
    if where == "cpu":
        accelerate.cpu_offload(model, "cpu")
    else:
        accelerate.disk_offload(model, tmp_path, "cpu")
    assert torch.equal(generate(model, cache=ra.ReasonAllocCache(model, FULL)), expected)
    assert torch.equal(generate(model, cache=ra.ReasonAllocCache(model, SMALL)), small)


# ---- Length ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_prompt_of_20_000_tokens():
    model = models.build("llama", max_position_embeddings=32768)
    ids = models.prompt(20_000)
    caches = [DynamicCache(config=model.config), ra.ReasonAllocCache(model, FULL), ra.ReasonAllocCache(model, SMALL)]
    with torch.no_grad():
        stock, *ours = (model(ids, logits_to_keep=1, **cache_argument(x)).logits for x in caches)
        for given in ours:  # nothing was evicted yet
            torch.testing.assert_close(given, stock, rtol=1e-3, atol=1e-3)
        given, expected = (models.step(model, x, models.prompt(1)) for x in (caches[1], caches[0]))
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3)
    assert caches[2].stats()["slots"] == [[[24, 24]] * 3]
