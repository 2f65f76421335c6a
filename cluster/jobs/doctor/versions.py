"""Versions: Python and the installed packages against those that this installation of Reelscale asks for."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cluster.jobs.doctor.finding import Verdict, ok, skipped, warning, wrong

_PACKAGE = "reelscale"
_INSTALL = "install what Reelscale asks for: pip install -c constraints.txt -e '.[ray]'"
_APART = ("torch", "ray")  # which have checks of their own


def check_python() -> Verdict:
    """Whether this Python is one that Reelscale asks for."""
    return python_verdict(platform.python_version(), importlib.metadata.metadata(_PACKAGE)["Requires-Python"])


def check_torch() -> Verdict:
    """Whether the installed torch is one that Reelscale asks for."""
    return package_verdict(requirements()["torch"], installed_version("torch"), f"{_INSTALL}; torch first")


def check_libraries() -> Verdict:
    """Whether all other packages are there in the versions that Reelscale asks for."""
    wanted = [each for name, each in requirements().items() if name not in _APART]
    return libraries_verdict(wanted, {each.name: installed_version(each.name) for each in wanted})


def check_ray_version() -> Verdict:
    """Whether the installed Ray is one that Reelscale asks for; Ray need not be there."""
    version = installed_version("ray")
    if version is None:
        return skipped("Ray is not installed: launcher=none, torchrun and srun need none")
    return package_verdict(requirements("ray")["ray"], version, _INSTALL)


def requirements(extra: str = "") -> dict[str, Requirement]:
    """What this installation of Reelscale asks for, by name, with what an extra adds.

    Raises importlib.metadata.PackageNotFoundError where it runs from a folder without having been installed.
    """
    parsed = [Requirement(line) for line in importlib.metadata.requires(_PACKAGE) or ()]
    return {each.name: each for each in parsed if each.marker is None or each.marker.evaluate({"extra": extra})}


def installed_version(name: str) -> str | None:
    """The version of an installed package; None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def python_verdict(version: str, wanted: str) -> Verdict:
    """Of a Python's version, and the versions that are wanted."""
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return ok(f"Python {version}")
    return wrong(f"Python {version}; Reelscale needs {wanted}", "make a virtual environment with such a Python")


def package_verdict(wanted: Requirement, version: str | None, remedy: str) -> Verdict:
    """Of one package: its installed version, None where it is missing."""
    problem = _problem(wanted, version)
    return wrong(problem, remedy) if problem else ok(f"{wanted.name} {version}")


def libraries_verdict(wanted: Sequence[Requirement], versions: Mapping[str, str | None]) -> Verdict:
    """Of several packages: those that are missing are wrong, those of another version a warning."""
    problems = [problem for each in wanted if (problem := _problem(each, versions[each.name]))]
    if not problems:
        return ok(f"{len(wanted)} packages, all of versions that Reelscale asks for")
    is_missing = any(versions[each.name] is None for each in wanted)
    return (wrong if is_missing else warning)("; ".join(problems), _INSTALL)


def _problem(wanted: Requirement, version: str | None) -> str:
    """What is wrong with an installed version; "" if nothing is. A local part ("+cu128") does not count."""
    needed = f"Reelscale needs {wanted.specifier or 'it'}"
    if version is None:
        return f"{wanted.name} is not installed; {needed}"
    if wanted.specifier.contains(version, prereleases=True):
        return ""
    return f"{wanted.name} {version}; {needed}"
