"""With nothing evicted the cache is the stock cache: the same tokens, whatever generate is asked for."""

import models
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, cache_utils, set_seed
from transformers.cache_utils import DynamicCache

import reasonalloc as ra
from reasonalloc.hf.compat import cache_argument

# A budget that nothing here reaches, so that cuts are due and evict nothing.
PLENTY = {"method": "rkv", "budget": 4000, "interval": 8}


def cache_of(model, **changes):
    return ra.ReasonAllocCache(model, ra.Config(**{**PLENTY, **changes}))


def generate(model, cache, ids, mask=None, new=30, **options):
    return model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        **cache_argument(cache),
        **{
            "max_new_tokens": new,
            "do_sample": False,
            "return_dict_in_generate": True,
            "output_logits": True,
            **options,
        },
    )


def both(model, ids, mask=None, **options):
    """(stock, ours) outputs of one generate call, and our cache."""
    stock = generate(model, DynamicCache(config=model.config), ids, mask, **options)
    cache = cache_of(model)
    ours = generate(model, cache, ids, mask, **options)
    assert cache.stats()["evicted"] == 0
    assert cache.stats()["closed"] is None
    return stock, ours, cache


def assert_same(stock, ours, tolerance=1e-4):
    assert torch.equal(stock.sequences, ours.sequences)
    for a, b in zip(stock.logits, ours.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# ---- The same tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.SUPPORTED)
def test_greedy(name):
    model = models.tiny(name)
    assert_same(*both(model, models.prompt(20))[:2])


@pytest.mark.parametrize("name", models.SUPPORTED)
def test_greedy_batch_of_different_lengths(name):
    model = models.tiny(name)
    ids, mask = models.left_padded([models.prompt(n, seed=n)[0] for n in (23, 5, 1)])
    stock, ours, cache = both(model, ids, mask)
    assert_same(stock, ours)
    full = cache.stats()["layers"]
    assert [[len(p) for p in cache.positions(full[0], row)] for row in range(3)] == [
        [n + 29] * cache.ragged[0].heads for n in (23, 5, 1)
    ]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "llama-wide"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name, dtype):
    """Both caches round, in different places: ours is to be as near to float32 arithmetic as the stock one.

    Tokens are forced, because a rounded logit may choose another one.
    """
    model, exact = models.tiny(name, dtype), models.build(name).to(dtype).float()
    cache, stock, reference = cache_of(model), DynamicCache(config=model.config), DynamicCache(config=model.config)
    text, errors = models.prompt(40, rows=2), []
    for begin, end in [(0, 20), *((i, i + 1) for i in range(20, 40))]:
        expected = models.step(exact, reference, text[:, begin:end])
        given = [models.step(model, c, text[:, begin:end]).float() for c in (cache, stock)]
        errors.append([(x - expected).square().mean().item() for x in given])
    ours, theirs = torch.tensor(errors).mean(0).sqrt()
    assert ours <= 1.25 * theirs
    assert theirs > 0
    assert cache.pool.core.page_bytes == 2 * 16 * cache.ragged[0].head_dim * 2


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_sampling_with_a_seed(name):
    model = models.tiny(name)
    ids, mask = models.left_padded([models.prompt(n, seed=n)[0] for n in (12, 7)])
    outputs = []
    for cache in (DynamicCache(config=model.config), cache_of(model)):
        set_seed(5)
        outputs.append(generate(model, cache, ids, mask, do_sample=True, temperature=0.9, top_k=20).sequences)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_beam_search(name):
    model = models.tiny(name)
    ids, mask = models.left_padded([models.prompt(n, seed=n)[0] for n in (12, 7)])
    outputs = [
        generate(model, cache, ids, mask, num_beams=3, num_return_sequences=2, output_scores=True)
        for cache in (DynamicCache(config=model.config), cache_of(model))
    ]
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    torch.testing.assert_close(outputs[0].sequences_scores, outputs[1].sequences_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_several_samples_of_a_prompt(name):
    model = models.tiny(name)
    outputs = []
    for cache in (DynamicCache(config=model.config), ours := cache_of(model)):
        set_seed(2)
        outputs.append(generate(model, cache, models.prompt(17), do_sample=True, num_return_sequences=4).sequences)
    assert torch.equal(*outputs)
    assert len(ours.stats()["slots"]) == 4


@pytest.mark.parametrize("chunk", [1, 4, 7, 19, 40])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_prefill_in_chunks(name, chunk):
    model = models.tiny(name)
    ids, mask = models.left_padded([models.prompt(n, seed=n)[0] for n in (20, 6)])  # a first chunk of padding alone
    # not the stock cache's tokens without chunks: in transformers 5.2 chunks change them by themselves
    stock = generate(model, DynamicCache(config=model.config), ids, mask, prefill_chunk_size=chunk)
    ours = generate(model, cache := cache_of(model), ids, mask, prefill_chunk_size=chunk)
    assert_same(stock, ours)
    assert [len(cache.positions(cache.stats()["layers"][-1], row)[0]) for row in (0, 1)] == [49, 35]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_second_turn_on_the_same_cache(name):
    model = models.tiny(name)
    outputs = []
    for cache in (DynamicCache(config=model.config), cache_of(model)):
        first = generate(model, cache, models.prompt(15)).sequences
        assert cache.get_seq_length() == first.shape[1] - 1
        second = generate(model, cache, torch.cat([first, models.prompt(9, seed=4)], 1))
        outputs.append(second)
    assert_same(*outputs)


def test_a_second_turn_of_a_padded_batch():
    model = models.tiny()
    ids, mask = models.left_padded([models.prompt(n, seed=n)[0] for n in (13, 4)])
    outputs = []
    for cache in (DynamicCache(config=model.config), cache_of(model)):
        first = generate(model, cache, ids, mask).sequences
        more, more_mask = models.left_padded([models.prompt(n, seed=n)[0] for n in (3, 8)])  # padding amid the row
        known = torch.cat([mask, torch.ones(2, first.shape[1] - ids.shape[1], dtype=torch.long), more_mask], 1)
        outputs.append(generate(model, cache, torch.cat([first, more], 1), known))
    assert_same(*outputs)


def test_rows_that_finish_at_different_times():
    model = models.build("llama")
    ids, mask = models.left_padded([models.prompt(n, seed=n)[0] for n in (10, 6, 14)])
    free = generate(model, DynamicCache(config=model.config), ids, mask, new=40).sequences[:, ids.shape[1] :]
    ends = next(int(t) for t in free[0, 5:].tolist() if t not in free[1, :20].tolist())
    stock, ours, _ = both(model, ids, mask, new=40, eos_token_id=ends)
    assert_same(stock, ours)
    assert ends in stock.sequences[0, ids.shape[1] :].tolist()


def test_positions_go_on_after_eviction():
    """What follows sees the logical length, whatever was evicted."""
    model = models.tiny()
    cache = cache_of(model, budget=12, interval=4)
    generate(model, cache, models.prompt(30), new=20)
    assert cache.get_seq_length() == 49
    assert all(int(p[-1]) == 48 for p in cache.positions(0))
    assert max(len(p) for p in cache.positions(0)) <= 12 + 4


def test_a_forward_pass_without_generate():
    model = models.tiny("qwen2")
    text = models.prompt(32, rows=2)
    cache = cache_of(model)
    with torch.no_grad():
        expected = model(text).logits
    given = [models.step(model, cache, text[:, a:b]) for a, b in ((0, 9), (9, 10), (10, 25), (25, 32))]
    torch.testing.assert_close(torch.cat(given, 1), expected, rtol=1e-4, atol=1e-4)


def test_right_padding():
    model = models.tiny()
    text, mask = models.prompt(12, rows=2), torch.ones(2, 12, dtype=torch.long)
    mask[1, 8:] = 0
    cache = cache_of(model)
    logits = models.step(model, cache, text, mask)
    alone = models.step(model, cache_of(model), text[1:, :8])
    torch.testing.assert_close(logits[1:, :8], alone, rtol=1e-4, atol=1e-4)
    assert [len(p) for p in cache.positions(0, 1)] == [8, 8]


def test_gradients_do_not_flow_through_the_cache():
    model = models.build("llama")
    cache = cache_of(model)
    out = model(models.prompt(10), **cache_argument(cache), use_cache=True)
    assert out.logits.requires_grad
    assert cache.stats()["slots"][0][0] == [10, 10]


# ---- Rows and lengths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_rows_are_repeated_selected_and_reordered(name):
    model = models.tiny(name)
    ids, mask = models.left_padded([models.prompt(n, seed=n)[0] for n in (11, 6)])
    caches = [DynamicCache(config=model.config), cache_of(model)]
    for cache in caches:
        models.step(model, cache, ids, mask)
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 0, 1, 2]))
        cache.batch_select_indices(torch.tensor([0, 1, 3]))
    known = torch.cat([mask[[1, 0, 1]], torch.ones(3, 1, dtype=torch.long)], 1)
    token = models.prompt(1, rows=3)
    stock, ours = (models.step(model, cache, token, known) for cache in caches)
    torch.testing.assert_close(stock, ours, rtol=1e-4, atol=1e-4)
    caches[1].batch_select_indices(torch.tensor([False, True, False]))
    assert len(caches[1].stats()["slots"]) == 1
    if name == "llama":
        with pytest.raises(ValueError, match=r"row numbers must lie in 0\.\.0"):
            caches[1].reorder_cache(torch.tensor([1]))


@pytest.mark.parametrize("kind", ["bamba", "lfm2", "qwen3_next", "gpt_oss", "gemma4_text"])
@pytest.mark.parametrize("budget", [24, 4000])
def test_rows_of_models_with_states(kind, budget):
    """What is left of the rows goes on as if these rows had been read."""
    if kind not in tiny.kinds() or not hasattr(cache_utils, "LinearAttentionLayer"):
        pytest.skip("states had caches of their own in this transformers")
    model = tiny.build(kind)
    changes = [
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda cache: cache.reorder_cache(torch.tensor([5, 0, 3, 3, 1, 2])), [5, 0, 3, 3, 1, 2]),
        (lambda cache: cache.batch_select_indices(torch.tensor([0, 1, 4])), [0, 1, 4]),
        (lambda cache: cache.batch_select_indices(torch.tensor([True, True, False])), [0, 1]),
    ]
    text, cache = models.prompt(40, rows=3), cache_of(model, budget=budget, window=4)
    models.step(model, cache, text)
    for change, rows in changes:
        change(cache)
        text = text[rows]
        alone = cache_of(model, budget=budget, window=4)
        models.step(model, alone, text[:, :40])
        for i in range(40, text.shape[1]):
            models.step(model, alone, text[:, i : i + 1])
        for _ in range(9):
            token = models.prompt(1, rows=len(rows), seed=text.shape[1])
            ours, expected = (models.step(model, each, token) for each in (cache, alone))
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
            text = torch.cat([text, token], 1)
    assert bool(cache.stats()["evicted"]) == (budget == 24)


def test_forked_rows_share_their_pages():
    model = models.tiny()
    cache = cache_of(model)
    models.step(model, cache, models.prompt(64))
    used = cache.stats()["bytes"]
    cache.batch_repeat_interleave(5)
    assert cache.stats()["bytes"] == used
    models.step(model, cache, models.prompt(1, rows=5))
    pages = len(cache.ragged) * 2 * 5  # a new page for each head of each row
    assert cache.stats()["bytes"] == used + pages * cache.pool.core.page_bytes


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_crop_takes_back_tokens(name):
    model = models.tiny(name)
    text = models.prompt(30, rows=2)
    cache, fresh = cache_of(model, interval=100), cache_of(model, interval=100)
    models.step(model, cache, text[:, :5])
    models.step(model, fresh, text[:, :5])
    for i in range(5, 7):
        models.step(model, cache, text[:, i : i + 1])
    cache.crop(-2)
    assert cache.get_seq_length() == 5
    given, expected = (models.step(model, c, text[:, 20:21]) for c in (cache, fresh))
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
    assert cache.stats()["slots"] == fresh.stats()["slots"]
    cache.crop(5)  # all but the first five
    assert cache.get_seq_length() == 5
    cache.crop(0)
    cache.crop(9)
    assert cache.get_seq_length() == 5


@pytest.mark.parametrize("again", [9, 20])
def test_cropping_a_whole_prompt(again):
    model = models.tiny()
    cache = cache_of(model)
    models.step(model, cache, models.prompt(20))
    cache.crop(-20)
    assert cache.get_seq_length() == 0
    assert cache.stats()["bytes"] == 0
    expected = models.step(model, cache_of(model), models.prompt(again, seed=1))
    torch.testing.assert_close(models.step(model, cache, models.prompt(again, seed=1)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"keep_prompt": True}])
@pytest.mark.parametrize("then", ["tokens", "token", "look", "save"])
def test_a_crop_amid_a_prompt(changes, then, tmp_path):
    """As if what was taken back had never come: for its wave and for what is kept of a prompt too."""
    model, text, more = models.tiny(), models.prompt(60), models.prompt(12, seed=1)
    settings = {"method": "reasonalloc", "budget": 48, "interval": 16, "window": 4, **changes}
    cropped, plain = cache_of(model, **settings), cache_of(model, **settings)
    models.step(model, cropped, text)
    cropped.crop(-20)
    models.step(model, plain, text[:, :40])
    caches = [cropped, plain]
    if then == "tokens":
        for cache in caches:
            models.step(model, cache, more[:, :10])
    if then == "look":
        assert cropped.stats()["budgets"] == plain.stats()["budgets"]
    if then == "save":
        for cache in caches:
            cache.save(tmp_path / "cache.safetensors")
            caches = [*caches[1:], ra.ReasonAllocCache.load(tmp_path / "cache.safetensors", model)]
    for t in (10, 11):
        for cache in caches:
            models.step(model, cache, more[:, t : t + 1])
    one, other = caches
    assert one.cutter.prompt.tolist() == other.cutter.prompt.tolist() == [50 if then == "tokens" else 40]
    assert one.stats()["wave"] == other.stats()["wave"]
    assert one.stats()["budgets"] == other.stats()["budgets"]
    assert [p.tolist() for p in one.positions(0)] == [p.tolist() for p in other.positions(0)]


def test_drafts_are_no_prompt():
    """Of passes of several tokens after a crop, the first may be the rest of the prompt."""
    model = models.tiny()
    cache = cache_of(model, method="reasonalloc", budget=100, keep_prompt=True)
    models.step(model, cache, models.prompt(20))
    for seed in range(4):
        cache.crop(-2)
        models.step(model, cache, models.prompt(4, seed=seed))
    assert cache.cutter.prompt.tolist() == [20]  # 18 and 4, of which 2 went
    assert cache.get_seq_length() == 28


def test_a_crop_beside_padding():
    """Columns go that are tokens in every row, wherever padding stands before them."""
    model, text = models.tiny(), models.prompt(30, rows=2)
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[0, :3], mask[1, 15:18] = 0, 0
    cache, fresh = cache_of(model, budget=400), cache_of(model, budget=400)
    models.step(model, cache, text[:, :12], mask[:, :12])
    models.step(model, cache, text[:, 12:25], mask[:, :25])
    assert cache.is_croppable
    with pytest.raises(ValueError, match="cannot crop 8 of 25 columns: only the newest 7 are tokens in every row"):
        cache.crop(-8)
    cache.crop(-5)
    models.step(model, fresh, text[:, :12], mask[:, :12])
    models.step(model, fresh, text[:, 12:20], mask[:, :20])
    given, expected = (models.step(model, each, text[:, 25:], mask[:, :25]) for each in (cache, fresh))
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
    cache = cache_of(model, budget=400)
    models.step(model, cache, text[:, :18], mask[:, :18])  # row 1 ends in padding
    assert not cache.is_croppable
    with pytest.raises(ValueError, match="only the newest 0 are tokens in every row"):
        cache.crop(-1)


# ---- Reset -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.SUPPORTED)
def test_a_reset_cache_is_as_new(name):
    model = models.tiny(name)
    expected = generate(model, DynamicCache(config=model.config), models.prompt(14)).sequences
    cache = cache_of(model)
    generate(model, cache, models.prompt(33, rows=2, seed=3))
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.stats()["slots"] == []
    assert cache.stats()["steps"] == 0
    assert torch.equal(generate(model, cache, models.prompt(14)).sequences, expected)


def test_stock_caches_work_while_the_model_has_our_attention():
    model = models.tiny("gemma3")
    expected = generate(model, DynamicCache(config=model.config), models.prompt(14)).sequences
    cache_of(model)
    assert torch.equal(generate(model, DynamicCache(config=model.config), models.prompt(14)).sequences, expected)
    assert torch.equal(model.generate(models.prompt(14), max_new_tokens=30, do_sample=False, use_cache=False), expected)


def test_a_model_placed_by_device_map(tmp_path):
    pytest.importorskip("accelerate")
    plain = models.build("llama")
    plain.save_pretrained(tmp_path)
    placed = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"}).eval()
    expected = plain.generate(models.prompt(14), max_new_tokens=30, do_sample=False)
    cache = ra.ReasonAllocCache(placed, ra.Config(budget=400))
    got = placed.generate(models.prompt(14), max_new_tokens=30, do_sample=False, **cache_argument(cache))
    assert torch.equal(expected, got)


def test_assisted_decoding_works_until_a_cut():
    """Rejected tokens are cropped; across a cut that cannot be, and is said."""
    model = models.build("llama")
    options = {"max_new_tokens": 40, "do_sample": False}
    expected = model.generate(models.prompt(20), **options)
    options["assistant_model"] = models.build("llama", seed=1)  # whose guesses are rejected nearly always
    roomy = ra.ReasonAllocCache(model, ra.Config(budget=400))
    assert torch.equal(model.generate(models.prompt(20), **cache_argument(roomy), **options), expected)
    tight = ra.ReasonAllocCache(model, ra.Config(budget=24, interval=16, window=4))
    with pytest.raises(ValueError, match="what was evicted does not come back"):
        model.generate(models.prompt(20), **cache_argument(tight), **options)
    assert tight.stats()["closed"] is None


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_prompt_lookup(name):
    """Candidates come from the prompt, which repeats itself here; transformers asks first whether it can crop."""
    model = models.build(name, **({"sliding_window": 99} if name == "gemma3" else {}))  # 5.2 does not crop beyond it
    ids = torch.cat([models.prompt(11)] * 3, 1)
    options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": 0}
    expected = model.generate(ids, **options)
    cache = ra.ReasonAllocCache(model, ra.Config(budget=400))
    given = model.generate(ids, **cache_argument(cache), prompt_lookup_num_tokens=3, **options)
    assert torch.equal(given, expected)
    assert cache.stats()["steps"] < 29  # several tokens in a step


@pytest.mark.parametrize("name", ["gemma3", "mixed"])
def test_a_crop_that_another_layer_refuses_changes_nothing(name):
    """Beyond its window a sliding layer cannot give tokens back."""
    changes = {"layer_types": ["full_attention", "sliding_attention"] * 3} if name == "mixed" else {}
    model = models.build("gemma3", **changes)
    cache, other = cache_of(model), cache_of(model)
    for each in (cache, other):
        models.step(model, each, models.prompt(30))
    with pytest.raises(ValueError, match=r"layer \d \(\w+\) cannot be cropped"):
        cache.crop(-3)
    assert cache.stats()["closed"] is None
    assert cache.get_seq_length() == 30
    given, expected = (models.step(model, c, models.prompt(1)) for c in (cache, other))
    assert torch.equal(given, expected)


def test_a_cache_says_whether_it_can_be_cropped():
    model = models.tiny()
    cache = cache_of(model, budget=24, interval=8, window=4)
    models.step(model, cache, models.prompt(20))
    assert cache.is_croppable
    models.step(model, cache, models.prompt(20))
    assert cache.stats()["evicted"] and not cache.is_croppable
    models.step(model, cache, models.prompt(1))
    assert cache.is_croppable


# ---- The real model --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm_greedy(smol):
    model, tokenizer = smol
    texts = [
        "What is 12 + 7 * 3? Think step by step.",
        "How many positive whole-number divisors does 196 have? Explain each step, then give the answer.",
        "Name three primes.",
    ]
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": t}], tokenize=False, add_generation_prompt=True)
        for t in texts
    ]
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    inputs = tokenizer(chats, return_tensors="pt", padding=True)
    assert inputs.attention_mask.sum(1).unique().numel() == 3
    options = {"max_new_tokens": 256, "min_new_tokens": 256, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    stock = model.generate(**inputs, **cache_argument(DynamicCache(config=model.config)), **options)
    cache = ra.ReasonAllocCache(model, ra.Config(method="reasonalloc", budget=2000))
    ours = model.generate(**inputs, **cache_argument(cache), **options)
    assert torch.equal(stock, ours)
    assert cache.stats()["evicted"] == 0
