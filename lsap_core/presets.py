"""The methods by their published names, as settings of optimization, of encoding and of training encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, TypeVar

from lsap_core.errors import ConfigError, did_you_mean
from lsap_core.inversion.by_encoder import EncoderSettings
from lsap_core.inversion.by_optimization import OptimizationSettings
from lsap_core.inversion.inversion import EmbeddingSettings
from lsap_core.inversion.kept_noise import KEEP_NOISE, KeepNoise
from lsap_core.refinement.hfgi import HfgiSettings
from lsap_core.refinement.hyperstyle import HyperStyleSettings
from lsap_core.refinement.pti import PtiSettings
from lsap_core.refinement.pti_shared import SharedPtiSettings
from lsap_core.refinement.refinement import RefinementSettings
from lsap_core.refinement.sam import SAM_TOOLBOX, SamSettings
from lsap_core.refinement.sfe import SfeSettings
from lsap_core.training.hfgi_settings import HfgiTrainingSettings
from lsap_core.training.hyperstyle_step import HyperStyleTrainingSettings
from lsap_core.training.pti_settings import PtiTrainingSettings
from lsap_core.training.sam_step import PredictorTrainingSettings
from lsap_core.training.settings import EncoderTrainingSettings
from lsap_core.training.sfe_settings import SFE_EDITOR, SFE_INVERTER, SfeTrainingSettings

PASSES = "num_refinements"
"""What archives, files of encoders and older run files call `num_passes`."""

OF_METHODS = ("encoder", "keep_noise")
"""What may be changed of a method beside its settings."""


@dataclass(frozen=True)
class Method:
    """A named way to embed images.

    Attributes:
        name: what configurations call it.
        title: what the paper calls it.
        settings: its constants at full scale.
        base: name of the method that it adds something to, or None.
        encoder: name of the encoder whose codes it gives or starts from, or None.
        keep_noise: what is kept of the noise maps that it gives every image; nothing to a method that gives none.

    Raises:
        ConfigError: an encoder is named and not asked, or asked and not named; noise is to be kept in an unknown way.
    """

    name: str
    title: str
    settings: EmbeddingSettings
    base: str | None = None
    encoder: str | None = None
    keep_noise: KeepNoise = "float32"

    def __post_init__(self) -> None:
        """Refuse a method with an encoder too many or too few."""
        if self.keep_noise not in KEEP_NOISE:
            raise ConfigError(
                f'method {self.name}: keep_noise is "{self.keep_noise}"; wanted one of {", ".join(KEEP_NOISE)}'
            )
        needs_encoder = self.settings.needs_encoder
        if needs_encoder and self.encoder is None:
            raise ConfigError(
                f'method {self.name}: start is "encoder" and no encoder is named; set `encoder` to the name of one, or '
                'start to "mean"'
            )
        if self.encoder is not None and not needs_encoder:
            raise ConfigError(
                f'method {self.name}: start is "mean", so its encoder {self.encoder} has nothing to do; set start to '
                '"encoder", or name no encoder'
            )

    @property
    def noise(self) -> str:
        """What its images are rendered with: maps of their own in "float32" or "float16", or "constant" ones."""
        is_kept = self.settings.keeps_noise and self.keep_noise != "none"
        return self.keep_noise if is_kept else "constant"

    def with_settings(self, changes: Mapping[str, Any]) -> Method:
        """The method with some of its settings, its `encoder` or its `keep_noise` changed.

        Raises:
            ConfigError: no such setting, or a value outside its range.
        """
        own = {name: changes[name] for name in OF_METHODS if name in changes}
        others = {name: value for name, value in changes.items() if name not in OF_METHODS}
        try:
            return replace(self, settings=replace(self.settings, **others), **own)
        except TypeError as error:
            raise ConfigError(f"method {self.name}: {error}") from error


_FAST: dict[str, Any] = {
    "num_steps": 100,
    "exploration": 0.0,
    "first_decay": 0.7,
    "second_decay": 0.9,
}

# All methods, and with them all kinds of settings: one of a new kind needs its file in `inversion` and its line here.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("stylegan2_w", "StyleGAN2-W", OptimizationSettings(space="w")),
        Method("stylegan2_w_plus", "StyleGAN2-W+", OptimizationSettings(space="w_plus")),
        Method("lsap_o_w", "LSAP_O-W", OptimizationSettings(space="w", sncd_weight=5.0), base="stylegan2_w"),
        Method(
            "lsap_o_w_plus",
            "LSAP_O-W+",
            OptimizationSettings(space="w_plus", sncd_weight=20.0),
            base="stylegan2_w_plus",
        ),
        # Not in the paper: does SNCD add anything that plain shrinking toward the mean does not?
        Method(
            "l2_w_plus",
            "W+ with L2 to the mean code",
            OptimizationSettings(space="w_plus", mean_code_weight=1.0),
            base="stylegan2_w_plus",
        ),
        # Not in the paper: the same loss in fewer steps, because the encoder has explored what is to be explored.
        Method(
            "lsap_o_w_plus_from_lsap_e",
            "LSAP_O-W+ from LSAP_E",
            OptimizationSettings(space="w_plus", sncd_weight=20.0, start="encoder", num_steps=200, exploration=0.0),
            base="lsap_o_w_plus",
            encoder="lsap_e",
        ),
        # Not in the paper: a schedule found by sweep on digits for a tenth of the steps (docs/performance.md).
        Method(
            "stylegan2_w_plus_fast",
            "StyleGAN2-W+, 100 steps",
            OptimizationSettings(**_FAST),
            base="stylegan2_w_plus",
        ),
        Method(
            "lsap_o_w_plus_fast",
            "LSAP_O-W+, 100 steps",
            OptimizationSettings(**_FAST, sncd_weight=20.0),
            base="lsap_o_w_plus",
        ),
        Method("psp", "pSp", EncoderSettings(), encoder="psp"),
        Method("e4e", "e4e", EncoderSettings(), encoder="e4e"),
        Method("lsap_e", "LSAP_E", EncoderSettings(), base="e4e", encoder="lsap_e"),
        Method("restyle_psp", "ReStyle-pSp", EncoderSettings(num_passes=5), base="psp", encoder="restyle_psp"),
        Method("restyle_e4e", "ReStyle-e4e", EncoderSettings(num_passes=5), base="e4e", encoder="restyle_e4e"),
    )
}


def method(name: str, **changes: object) -> Method:
    """The named method, with some of its settings changed.

    Raises:
        ConfigError: no such method, or no such setting.

    Example:
        >>> method("lsap_o_w").settings.sncd_weight
        5.0
        >>> method("lsap_o_w", num_steps=100).settings.num_steps
        100
    """
    if name not in METHODS:
        raise ConfigError(
            f'method "{name}" is not known; {did_you_mean(name, METHODS)}wanted one of {", ".join(METHODS)}'
        )
    return METHODS[name].with_settings(changes)


def method_of_encoder(name: str) -> Method:
    """The method that embeds with an encoder of one's own; a published name gives the published method.

    Raises:
        ConfigError: a method of that name does something else.

    Example:
        >>> method_of_encoder("lsap_e_seed1").encoder
        'lsap_e_seed1'
    """
    own = METHODS.get(name, Method(name, name, EncoderSettings(), encoder=name))
    if own.encoder != name:
        raise ConfigError(f'an encoder is named "{name}", which is a method of another kind; give it another name')
    return own


@dataclass(frozen=True)
class Training:
    """A named way to train an encoder.

    Attributes:
        name: what configurations call it; the method that embeds with the result has the same name.
        title: what its paper calls it.
        settings: its constants at full scale, for faces.
        has_pyramid: whether its heads read maps of three sizes.
    """

    name: str
    title: str
    settings: EncoderTrainingSettings
    has_pyramid: bool = True

    def with_settings(self, changes: Mapping[str, Any]) -> Training:
        """The training with some of its settings changed.

        Raises:
            ConfigError: no such setting, or a value outside its range.
        """
        try:
            return replace(self, settings=replace(self.settings, **changes))
        except TypeError as error:
            raise ConfigError(f"training {self.name}: {error}") from error


_PSP = EncoderTrainingSettings(heads="direct", progressive_start=None, sncd_weight=0.0, delta_weight=0.0)
_E4E = EncoderTrainingSettings(sncd_weight=0.0, adversarial_weight=0.1)

TRAININGS: dict[str, Training] = {
    training.name: training
    for training in (
        Training("psp", "pSp", _PSP),
        Training("e4e", "e4e", _E4E),
        Training("lsap_e", "LSAP_E", EncoderTrainingSettings(sncd_weight=0.5)),
        Training("restyle_psp", "ReStyle-pSp", replace(_PSP, is_iterative=True, num_passes=5), has_pyramid=False),
        Training("restyle_e4e", "ReStyle-e4e", replace(_E4E, is_iterative=True, num_passes=5), has_pyramid=False),
    )
}


def training(name: str, **changes: object) -> Training:
    """The named training, with some of its settings changed.

    Raises:
        ConfigError: no such training, or no such setting.

    Example:
        >>> training("e4e").settings.adversarial_weight
        0.1
    """
    if name not in TRAININGS:
        raise ConfigError(
            f'no training is called "{name}"; {did_you_mean(name, TRAININGS)}wanted one of {", ".join(TRAININGS)}'
        )
    return TRAININGS[name].with_settings(changes)


@dataclass(frozen=True)
class NamedRefiner:
    """A named way to refine inversions.

    Attributes:
        name: what configurations call it; of "lsap_e" it makes "lsap_e/<name>".
        title: what its paper calls it.
        settings: its constants at full scale.
        networks: name of the file of its networks, or None where it has none.
    """

    name: str
    title: str
    settings: RefinementSettings
    networks: str | None = None

    def with_settings(self, changes: Mapping[str, Any]) -> NamedRefiner:
        """The refiner with some of its settings, or its `networks`, changed.

        Raises:
            ConfigError: no such setting, or a value outside its range.
        """
        others = {name: value for name, value in changes.items() if name != "networks"}
        try:
            settings = replace(self.settings, **others)
        except TypeError as error:
            raise ConfigError(f"refiner {self.name}: {error}") from error
        return replace(self, settings=settings, networks=changes.get("networks", self.networks))


# All refiners, and with them all kinds of their settings: a new one needs its file in `refinement` and its line here.
REFINERS: dict[str, NamedRefiner] = {
    refiner.name: refiner
    for refiner in (
        NamedRefiner("hfgi", "HFGI", HfgiSettings(), networks="hfgi"),
        NamedRefiner("pti", "PTI", PtiSettings()),
        NamedRefiner("pti_shared", "PTI with shared weights", SharedPtiSettings(), networks="pti_shared"),
        NamedRefiner("hyperstyle", "HyperStyle", HyperStyleSettings(), networks="hyperstyle"),
        NamedRefiner("sam", "SAM", SamSettings(), networks="sam"),
        NamedRefiner("sam_toolbox", "SAM as in GANInverter", SAM_TOOLBOX, networks="sam"),
        NamedRefiner("sfe", "StyleFeatureEditor", SfeSettings(), networks="sfe"),
    )
}


RefinerTrainingSettings = (
    HfgiTrainingSettings
    | HyperStyleTrainingSettings
    | PredictorTrainingSettings
    | PtiTrainingSettings
    | SfeTrainingSettings
)
"""How networks of refiners are trained."""
TrainingSettings = TypeVar("TrainingSettings", bound=RefinerTrainingSettings)


@dataclass(frozen=True)
class RefinerTraining(Generic[TrainingSettings]):
    """A named way to train the networks of a refiner.

    Attributes:
        name: of the networks that come out: the refiner's, where they are all that it needs.
        title: what its paper calls it.
        settings: its constants at full scale, for faces.
    """

    name: str
    title: str
    settings: TrainingSettings

    def with_settings(self, changes: Mapping[str, Any]) -> RefinerTraining[TrainingSettings]:
        """The training with some of its settings changed.

        Raises:
            ConfigError: no such setting, or a value outside its range.
        """
        try:
            return replace(self, settings=replace(self.settings, **changes))
        except TypeError as error:
            raise ConfigError(f"training of {self.name}: {error}") from error


REFINER_TRAININGS: dict[str, RefinerTraining[Any]] = {
    training.name: training
    for training in (
        RefinerTraining("hfgi", "HFGI", HfgiTrainingSettings()),
        RefinerTraining("hyperstyle", "HyperStyle", HyperStyleTrainingSettings()),
        RefinerTraining("pti_shared", "PTI", PtiTrainingSettings()),
        RefinerTraining("sam", "SAM", PredictorTrainingSettings()),
        RefinerTraining("sfe_inverter", "StyleFeatureEditor's Inverter", SFE_INVERTER),
        RefinerTraining("sfe", "StyleFeatureEditor", SFE_EDITOR),
    )
}


def recorded_refinement(settings: RefinementSettings) -> dict[str, Any]:
    """A refiner's settings as an archive keeps them, with their kind."""
    return {**asdict(settings), "kind": settings.kind}


def refinement_settings_of(values: Mapping[str, Any]) -> RefinementSettings:
    """The settings of a refiner, from what an archive keeps of it.

    Raises:
        ConfigError: of a kind that this package does not have, or no settings of it.
    """
    known = {refiner.settings.kind: type(refiner.settings) for refiner in REFINERS.values()}
    others = dict(values)
    kind = others.pop("kind", None)
    if not isinstance(kind, str) or kind not in known:
        raise ConfigError(f'refiner of kind "{kind}"; this package has {", ".join(known)}: take the one that wrote it')
    try:
        return known[kind](**others)
    except TypeError as error:
        raise ConfigError(f"settings of a refiner make no sense ({error}): take the package that wrote them") from error


def kinds() -> dict[str, type[EmbeddingSettings]]:
    """The class of the settings of every kind of method."""
    return {each.settings.kind: type(each.settings) for each in METHODS.values()}


def current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from a file under the names that they have today."""
    return {"num_passes" if name == PASSES else name: value for name, value in values.items()}


def recorded(settings: EmbeddingSettings | EncoderTrainingSettings | RefinerTrainingSettings) -> dict[str, Any]:
    """Settings under the names that archives and files of networks keep them by."""
    return {PASSES if name == "num_passes" else name: value for name, value in asdict(settings).items()}


RECORDED_IF_OTHER = {
    "start": "mean",
    "precision": "float32",
    "first_decay": 0.9,
    "second_decay": 0.999,
    "stop_at_lpips": None,
}
"""Settings that came later: what was recorded without them has these values."""


def recorded_settings(settings: EmbeddingSettings) -> dict[str, Any]:
    """A method's settings as an archive keeps them.

    Settings that came later are told only where they are not what they were before, and the kind only where it is a
    later one than the first two: what was recorded before there were any of them keeps its digest.
    """
    values = recorded(settings)
    for name, value in RECORDED_IF_OTHER.items():
        if name in values and values[name] == value:
            del values[name]
    if settings.kind not in (OptimizationSettings.kind, EncoderSettings.kind):
        values["kind"] = settings.kind
    return values


def settings_of(config: Mapping[str, Any]) -> EmbeddingSettings:
    """The settings of a run, from what the archive keeps of its method.

    Raises:
        ConfigError: of a kind that this package does not have, or no settings of it.
    """
    values = config.get("settings")
    if not isinstance(values, dict):
        raise ConfigError(f"settings of a method are {str(values)[:80]}; wanted names and values: it was damaged")
    values = dict(values)
    kind = values.pop("kind", EncoderSettings.kind if PASSES in values else OptimizationSettings.kind)
    if not isinstance(kind, str) or kind not in kinds():
        raise ConfigError(f'method of kind "{kind}"; this package has {", ".join(kinds())}: take the one that wrote it')
    try:
        return kinds()[kind](**current_names(values))
    except TypeError as error:  # a setting that it does not have, or text where a number is compared
        raise ConfigError(f"settings of a method make no sense ({error}): take the package that wrote them") from error


def encoder_settings(settings: EmbeddingSettings, encoder: str | None) -> EncoderSettings:
    """How a method asks its encoder: as it says, or where it only starts there, as published for the encoder's name."""
    own = settings if isinstance(settings, EncoderSettings) else method_of_encoder(encoder or "").settings
    assert isinstance(own, EncoderSettings)
    return own
