"""A policy: which ancestors are denied or allowed, what is accepted until when, and what an open answer does to a gate.

In a file it is `provindex.toml`, or the table `[tool.provindex]` of `pyproject.toml`:

    deny = ["meta-llama/*", "license:cc-by-nc*"]
    allow = ["publisher:mistralai"]            # a link to any other model of the index is then denied
    deny_related = false                       # true: descendants and siblings of the model are denied too
    exclude = ["optimizer.pt"]                 # files and entries that may stay unread
    on_inconclusive = "fail"                   # or "warn" or "pass"
    on_not_comparable = "pass"
    [[ignore]]
    id = "meta-llama/Llama-3.2-1B"
    reason = "licensed, ticket 4711"
    expires = 2027-06-30
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Literal, get_args

from provindex.audit.rules import Rule
from provindex.common.errors import UsageError
from provindex.index.collection import Index
from provindex.index.entries import Entry

Effect = Literal["fail", "warn", "pass"]
EFFECTS: tuple[str, ...] = get_args(Effect)
MOST_RULES = 10_000
WAY_OUT = "The keys are described in provindex/audit/README.md."


@dataclass(frozen=True, slots=True)
class Ignored:
    """A link that is accepted. expires: the last day on which it is; None: for good."""

    rule: Rule
    reason: str
    expires: date | None

    def holds(self, today: date) -> bool:
        return self.expires is None or today <= self.expires

    def names(self, entry: Entry) -> bool:
        """Whether the exception is for a row; of an id without a variant it is for every row of the model."""
        name, _, variant = self.rule.pattern.partition("#")
        if self.rule.kind != "id" or self.rule.is_glob:
            return self.rule.holds(entry)
        model_id, _, revision = name.partition("@")
        same = model_id.lower() == entry.model_id.lower() and variant in ("", entry.variant)
        return same and (entry.revision or "").startswith(revision)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a gate asks.

    source: the file that it was read from, relative to the working directory; "" without one. passed_over: a file that
    was not read because it lies in a model's own folder.
    """

    deny: tuple[Rule, ...] = ()
    allow: tuple[Rule, ...] = ()
    ignore: tuple[Ignored, ...] = ()
    exclude: tuple[str, ...] = ()
    deny_related: bool = False
    on_inconclusive: Effect = "fail"
    on_not_comparable: Effect = "pass"
    source: str = ""
    passed_over: str = ""

    @property
    def asks(self) -> bool:
        """Whether there is anything to decide."""
        return bool(self.deny or self.allow)

    def with_more(
        self,
        deny: Sequence[str] = (),
        allow: Sequence[str] = (),
        exclude: Sequence[str] = (),
        *,
        related: bool = False,
    ) -> Policy:
        """The same with what the command line adds. related: whether it denies relatives too."""
        return replace(
            self,
            deny=_once((*self.deny, *map(Rule.of, deny))),
            allow=_once((*self.allow, *map(Rule.of, allow))),
            exclude=tuple(dict.fromkeys((*self.exclude, *exclude))),
            deny_related=self.deny_related or related,
        )

    def asked_for(self, index: Index) -> tuple[str, ...]:
        """Ids of the rows that have to be compared whatever the search says."""
        named = {entry.model_id: None for rule in self.deny for entry in rule.rows(index)}
        unknown = (rule.pattern for rule in self.deny if rule.kind == "id" and not rule.is_glob)
        return tuple(dict.fromkeys((*named, *(name for name in unknown if not index.named(name)))))

    def ignored(self, entry: Entry, today: date) -> Ignored | None:
        """The exception that holds for a row today."""
        return next((one for one in self.ignore if one.holds(today) and one.names(entry)), None)


def _once(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(dict.fromkeys(rules))


def of_table(table: Mapping[str, Any], source: str) -> Policy:
    """The policy that a table of a file states. UsageError, which names the key, if a value is not what it must be."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if name not in _READ:
            raise UsageError(f"{source} has the key {name}, which no policy has.", f"The keys are {', '.join(_READ)}.")
        found[name] = _READ[name](value, name, source)
    return Policy(**found, source=source)


def _texts(value: object, name: str, source: str) -> tuple[str, ...]:
    fits = isinstance(value, list) and len(value) <= MOST_RULES and all(isinstance(one, str) and one for one in value)
    if not fits:
        raise UsageError(f"{name} in {source} is a list of at most {MOST_RULES:,} texts.", WAY_OUT)
    return tuple(value)  # type: ignore[arg-type]  # looked at above


def _rules(value: object, name: str, source: str) -> tuple[Rule, ...]:
    return _once(map(Rule.of, _texts(value, name, source)))


def _flag(value: object, name: str, source: str) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name} in {source} is true or false.", WAY_OUT)
    return value


def _effect(value: object, name: str, source: str) -> str:
    if value not in EFFECTS:
        raise UsageError(f"{name} in {source} is one of {', '.join(EFFECTS)}.", WAY_OUT)
    return str(value)


def _exceptions(value: object, name: str, source: str) -> tuple[Ignored, ...]:
    if not isinstance(value, list) or len(value) > MOST_RULES:
        raise UsageError(f"{name} in {source} is a list of tables with id, reason and expires.", WAY_OUT)
    return tuple(_exception(one, f"{name}[{place}]", source) for place, one in enumerate(value))


def _exception(one: object, name: str, source: str) -> Ignored:
    fields = one if isinstance(one, dict) else {}
    rule, reason, expires = (fields.get(key) for key in ("id", "reason", "expires"))
    if not isinstance(rule, str) or not isinstance(reason, str) or not reason.strip() or fields.keys() - _EXCEPTION:
        raise UsageError(f"{name} in {source} needs an id and a reason, and may have expires.", WAY_OUT)
    if isinstance(expires, str):
        try:
            expires = date.fromisoformat(expires)
        except ValueError:
            expires = 0
    if expires is not None and type(expires) is not date:
        raise UsageError(f"expires of {name} in {source} is a day such as 2027-06-30.", WAY_OUT)
    return Ignored(Rule.of(rule), reason.strip(), expires)


_EXCEPTION = {"id", "reason", "expires"}
_READ: Mapping[str, Callable[[object, str, str], Any]] = {
    "deny": _rules, "allow": _rules, "ignore": _exceptions, "exclude": _texts, "deny_related": _flag,
    "on_inconclusive": _effect, "on_not_comparable": _effect,
}  # fmt: skip
