"""What the YAML files of all recipes have in common: sections of keys and values, an output folder and a seed."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from transformers import HfArgumentParser


@dataclass
class NetworksConfig:
    """One run: networks, and rows that are measured on them. `training` holds for every network, `pretrain` for the
    first, `models` names those trained further and what each changes."""

    output_dir: str
    seed: int
    training: dict[str, Any]
    pretrain: dict[str, Any]
    models: dict[str, dict[str, Any]]
    rows: dict[str, Any]


def sections_of(config: type) -> dict[str, type]:
    """The sections of a configuration that are dataclasses of their own, by name."""
    return {name: kind for name, kind in get_type_hints(config).items() if is_dataclass(kind)}


class RecipeFile:
    """The sections of one YAML file, as the command line overrides them.

    Args:
        path: The file.
        names: Sections that it may have, besides `output_dir` and `seed`.

    Attributes:
        sections: Keys and values of every section by name, empty for one that the file does not have.

    Raises:
        ValueError: For what is not YAML, an unknown section, naming those that exist, or what is not a section.
    """

    def __init__(self, path: str, names: Iterable[str]):
        self.path, names = path, list(names)
        try:
            content = yaml.safe_load(Path(path).read_bytes())
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"{path} is not valid YAML: {error}; see recipes/configs/ for examples.") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} must hold sections, {names}, but holds {content!r:.60}.")
        unknown = set(content) - {*names, "output_dir", "seed"}
        if unknown:
            raise ValueError(f"{path}: unknown sections {sorted(unknown)}; expected {names}, output_dir and seed.")
        for name in names:
            if not isinstance(content.get(name) or {}, dict):
                held = f"{content[name]!r:.60}"
                raise ValueError(f"{path}: section {name!r} must hold keys and values, but holds {held}.")
        self._content = content
        self.sections: dict[str, dict[str, Any]] = {name: dict(content.get(name) or {}) for name in names}

    def override(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Replaces keys of sections, by name of the section; what is `None` is left as it is."""
        for name, section in values.items():
            self.sections[name] |= {key: value for key, value in section.items() if value is not None}

    def run_options(self, default: str, output_dir: str | None, seed: int | None, smoke: bool) -> dict[str, Any]:
        """`output_dir` and `seed`: the command line's, else the file's, else the default."""
        folder = output_dir or self._content.get("output_dir", default)
        # A smoke run must not take the place of a real one.
        folder = f"{folder}-smoke" if smoke and output_dir is None else folder
        return {"output_dir": folder, "seed": self._content.get("seed", 0) if seed is None else seed}

    def parse(self, options: Mapping[str, type]) -> dict[str, Any]:
        """The sections that have a dataclass, as such, by name.

        Raises:
            ValueError: For an unknown key or a value that the dataclass refuses.
        """
        parsed = {}
        for name, kind in options.items():
            try:
                (parsed[name],) = HfArgumentParser(kind).parse_dict(self.sections[name])
            except ValueError as error:
                raise ValueError(f"{self.path}, section {name!r}: {error}") from error
        return parsed

    def named(self, section: str) -> dict[str, dict[str, Any]]:
        """A section whose keys are names, each with keys and values of its own.

        Raises:
            ValueError: If one holds something else, or two would leave their results in one folder.
        """
        values = self.sections[section]
        for name, entries in values.items():
            if not isinstance(entries, dict):
                held = f"{entries!r:.60}"
                raise ValueError(f"{self.path}, section {section!r}: {name!r} must hold keys and values, got {held}.")
        if len({folder_name(name) for name in values}) < len(values):
            raise ValueError(
                f"{self.path}: two {section} would leave their results in one folder; name them otherwise."
            )
        return dict(values)

    def networks_and_rows(self, arguments: type, own: str, row: type) -> dict[str, Any]:
        """The fields of [`NetworksConfig`] that are sections; see [`networks`] and [`rows`] for the arguments."""
        training = {name: self.sections[name] for name in ("training", "pretrain")}
        for name, values in training.items():
            self.check_training(f"section {name!r}", values, arguments)
        models = self.networks(arguments, own)
        return {**training, "models": models, "rows": self.rows(row, models)}

    def networks(self, arguments: type, own: str) -> dict[str, dict[str, Any]]:
        """The section `models`: networks that are trained further, and what each changes.

        Args:
            arguments: The class of the training arguments.
            own: A key that is no training argument.

        Raises:
            ValueError: For a name that is taken, or keys that are no training arguments.
        """
        models = self.named("models")
        if "pretrained" in models:
            raise ValueError(
                f"{self.path}: a network of `models` cannot be called pretrained, which is the one before."
            )
        for name, values in models.items():
            training = {key: value for key, value in values.items() if key != own}
            self.check_training(f"model {name!r}", training, arguments, others=[own])
        return models

    def rows(self, kind: type, models: Iterable[str]) -> dict[str, Any]:
        """The section `rows`, each as a dataclass that has a `network`: `pretrained` or one of `models`.

        Raises:
            ValueError: For an unknown key, a value that the dataclass refuses, an unknown network, or without a row.
        """
        rows, networks = {}, ["pretrained", *models]
        for name, values in self.named("rows").items():
            unknown = sorted(set(values) - set(kind.__dataclass_fields__))
            if unknown:
                known = ", ".join(kind.__dataclass_fields__)
                raise ValueError(f"{self.path}, row {name!r}: unknown keys {unknown}; expected {known}.")
            try:
                rows[name] = kind(**values)
            except ValueError as error:
                raise ValueError(f"{self.path}, row {name!r}: {error}") from error
            if rows[name].network not in networks:
                raise ValueError(
                    f"{self.path}, row {name!r}: `network` must be pretrained or one of `models` "
                    f"({', '.join(networks[1:])}), got {rows[name].network!r}."
                )
        if not rows:
            raise ValueError(f"{self.path}: `rows` must give at least one row, e.g. `plain: {{network: control}}`.")
        return rows

    def check_training(
        self, where: str, values: Mapping[str, Any], arguments: type, others: Iterable[str] = ()
    ) -> None:
        """Raises a `ValueError` for keys that are no fields of the training arguments.

        Args:
            where: What the message calls the place.
            values: The keys and their values.
            arguments: The class of the training arguments.
            others: Further keys that are possible there, for the hint.
        """
        fields = arguments.__dataclass_fields__
        wrong = sorted(set(values) - set(fields))
        if wrong:
            similar = get_close_matches(wrong[0], [*fields, *others], n=1)
            hint = f" Did you mean {similar[0]!r}?" if similar else ""
            raise ValueError(f"{self.path}, {where}: {wrong} are no training arguments.{hint}")


def folder_name(row: str) -> str:
    """A row's name as part of a folder's."""
    return re.sub(r"[^\w.=-]+", "-", row).strip("-")


def recipe_parser(description: str) -> argparse.ArgumentParser:
    """The command line that all recipes share; a recipe adds what it alone has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file, see recipes/configs/")
    parser.add_argument("--output_dir", help="output folder, instead of the config's")
    parser.add_argument("--data", help="folder with the data, or another source of it, instead of the config's")
    parser.add_argument("--seed", type=int, help="seed of everything, instead of the config's")
    parser.add_argument("--smoke", action="store_true", help="the same stages in seconds, with meaningless numbers")
    return parser


def read_config(parser: argparse.ArgumentParser, load_config: Callable[..., Any], args: Mapping[str, Any]) -> Any:
    """What `load_config` makes of the arguments; a mistake in the file ends the program as one in them does."""
    try:
        return load_config(**args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
