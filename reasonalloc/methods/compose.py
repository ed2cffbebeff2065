"""From the keywords of a `Config` to parts that own their settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from reasonalloc.methods.base import Method
from reasonalloc.methods.borrowed import MethodHeads, MethodLayers, MethodScorer
from reasonalloc.methods.table import METHODS
from reasonalloc.policy.cold import Cold
from reasonalloc.policy.heads import HEADS
from reasonalloc.policy.layers import LAYERS
from reasonalloc.policy.policy import Policy
from reasonalloc.policy.registry import Part, Registry
from reasonalloc.policy.schedule import Schedule
from reasonalloc.policy.scorers import SCORERS
from reasonalloc.policy.setting import FileName
from reasonalloc.policy.storage import STORAGES, Storage
from reasonalloc.policy.view import Settings

P = TypeVar("P", bound=Part)


class Keywords(Settings, Protocol):
    """A `Config`: a dataclass that names parts and holds their settings."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def scorer(self) -> str | None: ...
    @property
    def layers(self) -> str | None: ...
    @property
    def heads(self) -> str | None: ...
    @property
    def interval(self) -> int | None: ...
    @property
    def keep_prompt(self) -> bool | None: ...
    @property
    def sinks(self) -> int | None: ...
    @property
    def recall(self) -> bool: ...
    @property
    def cold_slots(self) -> int | None: ...
    @property
    def cold_format(self) -> str: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


_KINDS: dict[str, tuple[str, Registry[Any]]] = {
    "scorer": ("score", SCORERS),
    "layers": ("layer_totals", LAYERS),
    "heads": ("head_budgets", HEADS),
}


@dataclass(frozen=True)
class _Source:
    """Where a part comes from. value: its name, or the part where a method has one made by hand. lender: the method
    whose function it is, if it is one."""

    kind: str
    value: str | Part
    lender: type[Method] | None = None

    @classmethod
    def of(cls, kind: str, wanted: str | None, own: type[Method]) -> _Source:
        """wanted: the name of a part, or of a method that lends its part; None: that of the config's method."""
        function, table = _KINDS[kind]
        if wanted is not None and wanted in table:
            return cls(kind, table.own(wanted))
        method = own if wanted is None else METHODS.classes[table.own(wanted, METHODS)]
        default = next(f for f in fields(method) if f.name == kind)
        made: Any = default.default_factory() if callable(default.default_factory) else default.default
        return cls(kind, made, method if method.overrides(function) else None)

    @property
    def part(self) -> type[Part] | Part:
        """The part's class, or the one made by hand."""
        return _KINDS[self.kind][1][self.value] if isinstance(self.value, str) else self.value


class _Dealer:
    """Deals keywords and options out to those that own them.

    A keyword that is not at its default goes to every part with a setting of that name; one at its default leaves the
    part's own. Options are the fields of methods, and those of parts that are no keywords.
    """

    def __init__(self, config: Keywords) -> None:
        self.options = dict(config.options)
        self.keywords = {f.name for f in fields(config)}
        self.given = {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}

    def part(self, cls: type[P] | P) -> P:
        """A part with what the config says of its settings."""
        names = [f.name for f in fields(cls) if f.init]
        if isinstance(cls, type):
            missing = [f for f in fields(cls) if f.init and f.name not in self.given]
            self._require(f"{cls.kind} {cls.registered!r}", missing)
        settings = {name: self.given[name] for name in names if name in self.given} | self._options(names)
        return cls(**settings) if isinstance(cls, type) else replace(cls, **settings)

    def method(self, cls: type[Method]) -> Method:
        """A method with its options; ValueError for one that is missing, or a file that is not there."""
        required = _own_fields(cls)
        self._require(f"method {cls.name!r}", required, cls.files)
        for file in cls.files:
            if file in self.options and not Path(FileName().check(file, self.options[file])).is_file():
                raise ValueError(f"method {cls.name!r}: the file {file!r} does not exist: {self.options[file]}")
        return cls(**self._options(f.name for f in required))

    def _require(self, who: str, needed: Iterable[Field[Any]], files: tuple[str, ...] = ()) -> None:
        for f in needed:
            if f.name not in self.options and f.default is MISSING and f.default_factory is MISSING:
                what = "file" if f.name in files else "option"
                raise ValueError(f"{who} needs the {what} {f.name!r}: Config(options={{{f.name!r}: ...}})")

    def _options(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: self.options[name] for name in names if name in self.options}

    def check(self, what: str, owners: _Owners) -> None:
        """ValueError for an option that none of them has."""
        unknown = sorted(set(self.options) - set(owners.options), key=str)
        if unknown:
            has = [x for x in owners.options if x not in self.keywords]
            raise ValueError(f"{what} has no option {unknown[0]!r}; it has {has or 'none'}")


@dataclass(frozen=True)
class _Owners:
    """What a config's settings go to: its method and the parts that it names."""

    method: type[Method]
    sources: Mapping[str, _Source]
    storage: type[Storage] | Storage

    @classmethod
    def of(cls, method: str, replaced: Mapping[str, str | None]) -> _Owners:
        """replaced: names of parts in place of the method's own, by kind."""
        own = METHODS[method]
        sources = {kind: _Source.of(kind, replaced.get(kind), own) for kind in _KINDS}
        return cls(own, sources, STORAGES[own.storage] if isinstance(own.storage, str) else own.storage)

    @property
    def methods(self) -> list[type[Method]]:
        """Its own, and those that lend a part."""
        return [self.method, *(x.lender for x in self.sources.values() if x.lender is not None)]

    @property
    def options(self) -> list[str]:
        """Names that an option may have: fields of methods, and of parts, keywords among them."""
        parts = [*(x.part for x in self.sources.values() if x.lender is None), self.storage]
        has = [f.name for method in self.methods for f in _own_fields(method)]
        return list(dict.fromkeys([*has, *(f.name for part in parts for f in fields(part) if f.init)]))


def options_of(method: str, settings: Mapping[str, Any]) -> list[str]:
    """Names of the options that a method has, with the parts that settings of a config put in place of its own.
    ValueError for names that do not exist."""
    return _Owners.of(method, settings).options


def takes_size(method: str, settings: Mapping[str, Any]) -> bool:
    """Whether a method keeps as much as a size says, not every token or what its options say; with the layer
    allocator that settings of a config put in place of its own. ValueError for names that do not exist."""
    own = METHODS[method]
    source = _Source.of("layers", settings.get("layers"), own)
    part: Any = source.part
    return not own.unlimited and (source.lender is not None or part.sized)


def _own_fields(cls: type[Method]) -> list[Field[Any]]:
    base = {f.name for f in fields(Method)}
    return [f for f in fields(cls) if f.name not in base]


def compose(config: Keywords) -> tuple[Method, Policy]:
    """The method of a config with the parts that it replaces: by their names, and put together.

    Raises ValueError for names and options that do not exist, and for settings out of range.
    """
    replaced = {kind: name for kind in _KINDS if (name := getattr(config, kind)) is not None}
    dealer, owners = _Dealer(config), _Owners.of(config.method, replaced)
    base, sources = owners.method, owners.sources
    what = " with ".join([f"method {base.name!r}", *(f"{kind} {name!r}" for kind, name in replaced.items())])
    dealer.check(what, owners)

    changes: dict[str, Any] = {kind: x.value for kind, x in sources.items()}
    changes |= {x: getattr(config, x) for x in ("interval", "keep_prompt", "sinks") if getattr(config, x) is not None}
    method = replace(dealer.method(base), **changes)
    instances = {base: method} | {cls: dealer.method(cls) for cls in owners.methods if cls is not base}

    def part(kind: str, borrowed: Callable[[Method], Part]) -> Any:
        source = sources[kind]
        return dealer.part(source.part) if source.lender is None else borrowed(instances[source.lender])

    policy = Policy(
        name=base.name,
        scorer=part("scorer", lambda x: MethodScorer(x, config, smoothing=config.smoothing)),
        layers=part("layers", lambda x: MethodLayers(x, config, x.needs_wave)),
        heads=part("heads", lambda x: MethodHeads(x, config)),
        schedule=Schedule(method.interval, config.window, method.keep_prompt, method.sinks, base.whole_prompts),
        storage=dealer.part(owners.storage),
        settings=config,
        unlimited=base.unlimited,
        cold=Cold(config.cold_slots, config.cold_format) if config.recall else None,
    )
    return method, policy
