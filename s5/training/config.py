"""Read YAML or Python configurations into validated objects.

A configuration is a pydantic model. Its sections are pydantic models too, or the dataclasses that the code
uses directly. An unknown key or an invalid value raises an error that names the key and lists the valid ones.
A YAML file may extend another one, named by its key `_base_`. Values can be overridden on the command line as
`section.key=value`.
"""

import difflib
import math
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_type_hints

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from s5.backbones import Finetune, Lora, Normalization, parse_normalization
from s5.checkpoints.bands import is_band
from s5.data.augmentation import Photometric
from s5.data.files import write_bytes
from s5.errors import ConfigError
from s5.ranges import (
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Share,
    ShareBelowOne,
    require_ordered,
)

CONFIG_FILE = "config.yaml"  # in the folder of a run


class Section(BaseModel):
    """Base class of all configuration sections: unknown keys are errors, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


T = TypeVar("T", bound=Section)


def load_config(
    schema: type[T], path: str | Path, overrides: list[str] | None = None, **given: str | None
) -> T:
    """Read `path` into `schema`, with overrides on top.

    Args:
        schema: The class of the configuration.
        path: A YAML file.
        overrides: `section.key=value` each; the value is YAML.
        given: Values of keys, on top of the others; None is not given.

    Raises:
        ConfigError: The file is missing or not YAML, a key is unknown, or a value is of the wrong type or out
            of range.
    """
    given_values = {key: value for key, value in given.items() if value is not None}
    return _validate(schema, path, _read_yaml(Path(path)), overrides, given_values)


def load_python_config(schema: type[T], path: str | Path, overrides: list[str] | None = None) -> T:
    """Read an mmengine Python configuration into `schema`, with overrides as in :func:`load_config`.

    Names with a leading underscore are local to the file and not part of the configuration.

    Raises:
        ConfigError: As for :func:`load_config`, or the Python code raises an exception.
    """
    from mmengine.config import Config

    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such configuration file (working folder: {Path.cwd()})")
    try:
        values = Config.fromfile(path).to_dict()
    except Exception as error:  # whatever the code of the file raises
        raise ConfigError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error
    public = {key: value for key, value in values.items() if not key.startswith("_")}
    return _validate(schema, path, public, overrides)


def _validate(
    schema: type[T],
    path: str | Path,
    values: dict[str, Any],
    overrides: list[str] | None,
    given: Mapping[str, str] = MappingProxyType({}),
) -> T:
    for item in overrides or []:
        key, separator, text = item.partition("=")
        if not separator:
            raise ConfigError(f"--cfg-options {item!r}: expected section.key=value")
        _set(values, key.split("."), _parse(item, text))
    values |= given
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"  {_describe(schema, values, problem)}" for problem in error.errors())
        raise ConfigError(f"{path}: {error.error_count()} problem(s):\n{problems}") from None


def save_config(config: Section, path: str | Path) -> None:
    """Write the resolved configuration as YAML."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_bytes(Path(path), text.encode())


def config_beside(checkpoint: Path) -> Path | None:
    """Return the configuration that a run has saved in the folder of its checkpoint; None without one."""
    path = checkpoint.parent / CONFIG_FILE
    return path if path.is_file() else None


class _UniqueKeyLoader(yaml.SafeLoader):
    """A YAML loader that rejects duplicate keys; plain YAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for (key_node, _), key in zip(node.value, keys, strict=True):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key!r}; it must occur only once", key_node.start_mark
                )
        return super().construct_mapping(node, deep)


BASE = "_base_"  # as in mmengine


def _read_yaml(path: Path, extended: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file, on top of the file that its key `_base_` names (relative to it), if it has one."""
    values = _read_mapping(path)
    if BASE not in values:
        return values
    base = values.pop(BASE)
    if not isinstance(base, str):
        raise ConfigError(f"{path}: {BASE} = {base!r}: expected the path of the file to extend")
    chain = (*extended, path.resolve())
    if (base_path := (path.parent / base)).resolve() in chain:
        raise ConfigError(f"{path}: {BASE} = {base!r}: these files extend each other")
    return _merged(_read_yaml(base_path, chain), values)


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Values on top of those of a base: sections are merged key by key, anything else is replaced."""
    result = dict(base)
    for key, value in values.items():
        inherited = result.get(key)
        if isinstance(value, dict) and isinstance(inherited, dict):
            value = _merged(inherited, value)
        result[key] = value
    return result


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_bytes(), _UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file (working folder: {Path.cwd()})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections with keys, found {type(values).__name__}")
    return values


def _parse(item: str, text: str) -> Any:  # noqa: ANN401 - any YAML value
    try:
        return yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise ConfigError(f"--cfg-options {item!r}: not a YAML value: {error}") from None


def _set(values: dict[str, Any], keys: list[str], value: Any) -> None:  # noqa: ANN401 - any YAML value
    for key in keys[:-1]:
        child = values.get(key, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--cfg-options {'.'.join(keys)}: {key!r} is a value, not a section")
        values[key] = dict(child)  # a copy, because a YAML alias shares one section between several keys
        values = values[key]
    values[keys[-1]] = value


def _describe(schema: type[BaseModel], values: dict[str, Any], problem: Any) -> str:  # noqa: ANN401 - pydantic's
    location = [part for part in problem["loc"] if isinstance(part, str)]
    name = _key(values, problem["loc"], problem["type"] == "missing")
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):  # in a model, in a dataclass
        valid = sorted(_fields_at(schema, location[:-1]))
        close = difflib.get_close_matches(location[-1], valid, n=1)
        hint = f" - did you mean {close[0]!r}?" if close else ""
        return f"unknown key {name!r}{hint} Valid here: {', '.join(valid)}"
    if problem["type"] == "missing":
        return f"{name}: required key is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], dict | BaseModel) or is_dataclass(problem["input"]):  # a section's rule
        return f"{name}: {message}" if name else message
    return f"{name} = {problem['input']!r}: {message}"


def _key(values: Any, location: Sequence[str | int], missing: bool) -> str:  # noqa: ANN401 - any YAML value
    """Return the key as written by the user: pydantic adds levels for the union member it tried."""
    parts = []
    for i, part in enumerate(location):
        if isinstance(values, dict) and part in values:
            values = values[part]
        elif isinstance(values, list | tuple) and isinstance(part, int):
            values = values[part]
        elif not (missing and i == len(location) - 1):
            continue
        parts.append(str(part))
    return ".".join(parts)


def _fields_at(schema: type, location: list[str]) -> set[str]:
    """Valid keys of the section at `location`; names of dict entries and union members in it are skipped."""
    schemas = [schema]
    for key in location:
        annotations = [fields[key] for fields in map(_fields, schemas) if key in fields]
        if annotations:
            schemas = [section for annotation in annotations for section in _sections(annotation)]
    return {name for section in schemas for name in _fields(section)}


def _fields(section: type) -> dict[str, Any]:
    """Types of a section (a model or a dataclass) by key."""
    if issubclass(section, BaseModel):
        return {name: field.annotation for name, field in section.model_fields.items()}
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in fields(cast(Any, section))}


def _sections(annotation: Any) -> list[type]:  # noqa: ANN401 - any type expression
    """Sections contained in a type such as `dict[str, Section]` or `Path | Section`."""
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


NORM_EPS = 1e-5  # as in the published weights and code, which use it even on top of MAE weights (1e-6)
RGB = ("red", "green", "blue")
NormalizationSetting = Annotated[Normalization, BeforeValidator(parse_normalization)] | None
Precision = Literal["auto", "bf16", "fp16", "fp32"]


class ScaleRange(Section):
    """Geometry of training crops."""

    scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    flip: bool = True
    rotate: bool = True

    @model_validator(mode="after")
    def _scale_ordered(self) -> "ScaleRange":
        require_ordered("scale", self.scale)
        return self


class ModelConfig(Section):
    """The network except for the choice of backbone.

    `norm_eps` is the epsilon of the norms in the blocks; ViTs of timm always have their own.
    `normalization` is that of the images; by default that which the initial weights were trained with.
    `finetune` chooses what is trained in the backbone; `lora` matters for `finetune: lora` only.
    """

    decoder_channels: Positive = 256
    drop_path: ShareBelowOne = 0.1
    norm_eps: PositiveFloat = NORM_EPS
    normalization: NormalizationSetting = None
    activation_checkpointing: bool = False
    compile: bool = False
    finetune: Finetune = "full"
    lora: Lora = Lora()


class OptimConfig(Section):
    """AdamW; `exempt_norms` excludes norms and the positional embedding from weight decay."""

    lr: PositiveFloat = 5e-5
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.01
    exempt_norms: bool = True
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    warmup_iters: NonNegative = 0
    clip_grad: PositiveFloat | None = None


class ScheduleConfig(Section):
    """Intervals, in iterations or epochs, and the limits on skipped steps.

    A step is skipped if its loss or gradients are not finite.
    """

    val_interval: Positive
    checkpoint_interval: Positive = 1
    keep_checkpoints: Positive = 2
    log_interval: Positive = 50  # steps
    max_skipped_in_a_row: Positive = 10
    max_skipped_share: Share = 0.01  # of the last 1000 steps


class EpochScheduleConfig(ScheduleConfig):
    """Length and intervals in epochs.

    An epoch is `steps_per_epoch` steps, by default as many as one pass over the images of the dataset that
    takes longest (an incomplete last step is dropped).
    """

    epochs: Positive
    steps_per_epoch: Positive | None = None


class RunConfig(Section):
    """Configuration shared by all training runs; subclasses refine `optim` and `schedule` and add sections.

    `init_bands` are the 1-based numbers of the channels that were red, green and blue in the images that the
    initial weights were trained on, or their names, see `s5.checkpoints.bands`.
    """

    optim: OptimConfig
    schedule: ScheduleConfig
    init_bands: tuple[int, int, int] | tuple[str, str, str] | None = None
    precision: Precision = "auto"
    sync_bn: bool = True
    seed: NonNegative = 0

    @field_validator("init_bands", mode="before")
    @classmethod
    def _three_bands(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the YAML holds
        """Parse the `3,2,1` or `B04,B03,B02` of a command line as a list."""
        if value is None:
            return None
        bands = re.split(r"\s*,\s*", value.strip()) if isinstance(value, str) else value
        listed = [str(band) for band in bands] if isinstance(bands, list | tuple) else []
        numbers = [int(band) for band in listed if band.isdecimal() and int(band) > 0]
        named = all(map(is_band, listed))
        if len(listed) != len(RGB) or not (named or len(numbers) == len(listed)):
            raise ValueError(
                "expected three channel numbers, counted from 1: red, green, blue, such as 3,2,1, or three "
                "names of bands, such as B04,B03,B02 or red,green,blue"
            )
        return listed if named else numbers


class CropsConfig(RunConfig):
    """Configuration of a run on crops with photometric augmentation.

    `init` are the initial weights: `none`, or as for :func:`s5.checkpoints.initial.start_from`.
    """

    backbone: str
    init: str

    @abstractmethod
    def crop_and_changes(self) -> tuple[str, dict[str, Photometric]]:
        """Key of the crop size in pixels, and the photometric augmentations by key."""

    @model_validator(mode="after")
    def _blur_fits(self) -> "CropsConfig":
        """Reject a blur whose kernel radius is not smaller than the crops."""
        crop_key, changes = self.crop_and_changes()
        crop = reduce(getattr, crop_key.split("."), cast(Any, self))
        for key, change in changes.items():
            reach = math.ceil(3 * change.blur_sigma[1])
            if reach >= crop:
                raise ValueError(
                    f"{key}.blur_sigma {change.blur_sigma[1]} has a kernel radius of {reach} pixels, which "
                    f"must be smaller than {crop_key} {crop}; set a smaller sigma or larger crops"
                )
        return self
