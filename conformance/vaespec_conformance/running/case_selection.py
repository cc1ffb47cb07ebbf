"""The cases of a check for a subject: those of the check, and the same ones put to the config that the subject has.

A subject that does not take the config "plain" is examined with every case of it in its home config instead: the first
config that it names, or the first published one that it builds.
"""

from __future__ import annotations

import json

from vaespec import AutoencoderConfig
from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.judging.registry import PROFILES, Check
from vaespec_conformance.running.timing import TIME_LIMITS
from vaespec_conformance.subjects.program import ProgramSubject
from vaespec_conformance.subjects.subjects import Subject

USUAL = "plain"
"""The config of most cases."""
WIDE_CASES = len(models.REGIMES)
"""Cases of a check in a wide config: one for each regime of weights."""
BATCHES = 6
"""Batches of a program that a check may wait for in vain: two for its cases, and those of the search for a cause."""
PATIENT = 5
"""How many times as long a check may take in a wide config."""


def pinned_cases(subject: Subject, check: Check, dtype: str, profile: str) -> tuple[Case, ...]:
    """The pinned cases of a check in a dtype and a profile, then those in the subject's own configs, each once."""
    cases = check.pinned_in(dtype, profile)
    added = [_in_config(case, config) for config in _own(subject) for case in _few(config, cases)]
    return tuple(dict.fromkeys((*cases, *added)))


def drawn_cases(subject: Subject, check: Check, profile: str) -> int:
    """How many cases are drawn: none if the subject has wide configs only."""
    home, of_models = subject.home, any("config" in dict(case.items) for case in check.pinned)
    if home is not None and of_models and models.is_wide(home) and not subject.takes(models.CONFIGS[USUAL]):
        return 0
    return check.examples[PROFILES.index(profile)]


def fitted(subject: Subject, case: Case) -> Case:
    """The case, in the home config if the subject does not take its own."""
    home = subject.home
    if home is None or "config" not in dict(case.items) or subject.takes(models.config_of(case)):
        return case
    return _in_config(case, home)


def name_of(config: AutoencoderConfig) -> str:
    """The name of a config in `models.CONFIGS`, or its JSON: what a case has."""
    known = (name for name, other in models.CONFIGS.items() if other == config)
    return next(known, None) or json.dumps(config.to_dict(), sort_keys=True)


def allowed(subject: Subject, profile: str, time_limit: float | None = None) -> float:
    """Seconds that a check may take: `time_limit`, if it is given; a program has its own, for each batch of cases."""
    if isinstance(subject, ProgramSubject):
        return BATCHES * subject.maker.asker.seconds + TIME_LIMITS[profile]
    if time_limit:
        return time_limit
    slower = PATIENT if subject.home is not None and models.is_wide(subject.home) else 1
    return slower * TIME_LIMITS[profile]


def _own(subject: Subject) -> tuple[AutoencoderConfig, ...]:
    """The configs in which the cases of "plain" are run as well."""
    homes = () if subject.home is None else (subject.home,)
    return tuple(c for c in dict.fromkeys((*subject.own_configs, *homes)) if c != models.CONFIGS[USUAL])


def _few(config: AutoencoderConfig, cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """The cases in the usual config: all of them, or the first of each regime for a wide config."""
    usual = tuple(case for case in cases if dict(case.items).get("config") == USUAL and "regime" in dict(case.items))
    if not models.is_wide(config):
        return usual
    by_kind = {(case["regime"], dict(case.items).get("fault")): case for case in reversed(usual)}
    return tuple(case for case in usual if case in by_kind.values())[:WIDE_CASES]


def _in_config(case: Case, config: AutoencoderConfig) -> Case:
    """The case with another config, and with sizes that the config can have: even ones, if its latents are patches."""
    values = {**dict(case.items), "config": name_of(config)}
    if "size" in values:
        multiples = config.patch_size or (1, 1)
        values["size"] = tuple(max(n + n % m, _least(config)) for n, m in zip(case["size"], multiples, strict=True))
    return Case.of(**values)


def _least(config: AutoencoderConfig) -> int:
    """The least side of latents: 2 where a group is one channel, since a norm of a single value is but its rounding."""
    return 2 if config.block_out_channels[-1] == config.norm_num_groups else 1
