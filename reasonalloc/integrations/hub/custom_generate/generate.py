"""A cache inside a budget: `model.generate(..., custom_generate=REPOSITORY, trust_remote_code=True, budget=256)`."""

from dataclasses import fields
from typing import Any

import reasonalloc as ra
from reasonalloc.hf.attention import using
from reasonalloc.hf.compat import cache_argument, generation_setting, given_cache, without_cache

_FIELDS = tuple(field.name for field in fields(ra.Config))


def generate(model: Any, **kwargs: Any) -> Any:
    """transformers' own `generate` with a fresh `ra.ReasonAllocCache`.

    Fields of `ra.Config` are taken by name: method (default "reasonalloc") with exactly one of budget, ratio and
    max_bytes (none for method "full"), profile (a WaveProfile or its file) and all others; everything else goes on to
    `generate`. The model has its own attention back afterwards. With return_dict_in_generate=True the cache and its
    `stats()` are the result's `past_key_values` (`cache` from transformers 5.24 on).
    """
    settings = {name: kwargs.pop(name) for name in _FIELDS if name in kwargs}
    if isinstance(settings.get("profile"), str):
        settings["profile"] = ra.WaveProfile.load(settings["profile"])
    config = ra.Config(**settings)
    if given_cache(kwargs) is not None:
        raise ValueError(
            "custom_generate makes a fresh cache, past_key_values (or cache) was given too; to go on with a cache call"
            " generate without custom_generate"
        )
    if generation_setting(model, (), kwargs, "use_cache") is False:
        raise ValueError("custom_generate is about the cache, use_cache=False was given or is in a generation config")
    if (named := generation_setting(model, (), kwargs, "cache_implementation")) is not None:
        raise ValueError(f"custom_generate makes a fresh cache, cache_implementation={named!r} was given too")
    with using(model):
        # Not model.generate: where a repository holds weights and this file, that is this very function.
        cache = ra.ReasonAllocCache(model, config)
        return type(model).generate(model, **without_cache(kwargs), **cache_argument(cache))
