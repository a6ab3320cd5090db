"""A run as it is asked for: read with its types, changed by key, completed by its domain, refused by field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from domains.domain import load_domain
from flows.parameters.invert import InvertRun
from flows.parameters.run_file import ParameterError
from lsap_core.inversion.by_encoder import EncoderSettings
from tasks.settings import Settings
from tasks.weights.published import TORCH_CACHE, Published

ROOT = Path(__file__).parents[3]
SMALLEST = {"source": "images", "archive": "archive"}
DIGITS = {**SMALLEST, "domain": "digits"}
SETTINGS = Settings()


def write(tmp_path: Path, values: Any) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return str(path)


def refused(tmp_path: Path, values: Any, *changes: str) -> str:
    with pytest.raises(ParameterError) as caught:
        InvertRun.read(write(tmp_path, values), changes)
    return str(caught.value)


def unresolved(**values: Any) -> str:
    with pytest.raises(ParameterError) as caught:
        InvertRun(**{**DIGITS, **values}).resolve(SETTINGS)
    return str(caught.value)


# --- read ---------------------------------------------------------------------------------------------


def test_a_run_is_its_file_with_defaults_for_the_rest(tmp_path: Path) -> None:
    run = InvertRun.read(
        write(
            tmp_path,
            """
            source: "digits:test[:8]"
            archive: archives/a
            methods: [lsap_o_w]
            embedding: {num_steps: 5, noise_weight: 1e3}
            method_settings: {lsap_o_w: {sncd_weight: 2}}
            anchor: {num_samples: 100}
            workers: {count: 1, gpus_each: 0.5}
            max_failed_share: 0.5
            """,
        )
    )
    assert (run.source, run.archive, run.methods) == ("digits:test[:8]", "archives/a", ("lsap_o_w",))
    assert (run.domain, run.generator, run.fit, run.seed, run.retries) == ("full_scale", None, "refuse", 0, 3)
    assert (run.anchor.num_samples, run.anchor.style_set, run.anchor.seed) == (100, "authors", 0)
    assert (run.workers.count, run.workers.gpus_each, run.workers.threads) == (1, 0.5, 1)
    assert run.max_failed_share == 0.5


def test_the_example_can_be_run() -> None:
    run = InvertRun.read(str(ROOT / "examples" / "digits.yaml"))
    assert len(run.resolve(SETTINGS).methods) == len(run.methods) == 9


def test_a_run_survives_being_written_down(tmp_path: Path) -> None:
    """The report prints it, and whoever copies it from there gets the same run."""
    run = InvertRun(**DIGITS, embedding={"num_steps": 3}, workers={"gpus_each": 0.25}, methods=("lsap_o_w",))
    assert InvertRun.read(write(tmp_path, yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False))) == run


# --- changed by key -----------------------------------------------------------------------------------


def test_changes_reach_fields_at_every_depth_and_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, {**DIGITS, "seed": 1, "anchor": {"num_samples": 5, "seed": 2}})
    changes = ["seed=7", "anchor.num_samples=9", "workers.count=3", "method_settings.lsap_o_w.sncd_weight=0.5"]
    run = InvertRun.read(path, changes)
    assert (run.seed, run.anchor.num_samples, run.anchor.seed, run.workers.count) == (7, 9, 2, 3)
    assert run.method_settings == {"lsap_o_w": {"sncd_weight": 0.5}}
    assert InvertRun.read(path).seed == 1  # the file stays as it is


def test_later_changes_win(tmp_path: Path) -> None:
    assert InvertRun.read(write(tmp_path, SMALLEST), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("change", "field", "wanted"),
    [
        ("methods=[lsap_o_w, stylegan2_w]", "methods", ("lsap_o_w", "stylegan2_w")),
        ("embedding={num_steps: 3}", "embedding", {"num_steps": 3}),
        ("embedding.learning_rate=0.5", "embedding", {"learning_rate": 0.5}),
        ("embedding.space=w", "embedding", {"space": "w"}),
        ("source=a=b, c: d", "source", None),
        ('source="a=b"', "source", "a=b"),
        ("source=s3://bucket/a b", "source", "s3://bucket/a b"),
        ("source=", "source", None),
        ("generator=null", "generator", None),
        ("max_failed_share=1e-2", "max_failed_share", 0.01),
        ("batch_size=8", "batch_size", 8),
    ],
)
def test_values_are_yaml(tmp_path: Path, change: str, field: str, wanted: Any) -> None:
    path = write(tmp_path, {**SMALLEST, "generator": "g.pt"})
    if wanted is None and field == "source":
        with pytest.raises(ParameterError, match=r"^source: "):
            InvertRun.read(path, [change])
    else:
        assert getattr(InvertRun.read(path, [change]), field) == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed", '"seed" is no change; wanted key=value'),
        ("=5", '"=5" is no change'),
        ("seed.of=5", "seed.of: seed is a plain value and has no fields"),
        ("methods.0=lsap_o_w", "methods.0: methods is a plain value"),
        ("embedding={", "embedding: the value '{' is not YAML"),
        ("sead=5", "sead: there is no such field; did you mean seed?"),
        ("workers.counts=5", "workers.counts: there is no such field; did you mean count?"),
        ("workers.number=5", "workers.number: there is no such field; wanted "),
        ("workers.count=0", "workers.count: 0: input should be greater than or equal to 1"),
        ("seed=-1", "seed: -1: input should be greater"),
        ("seed=x", "seed: 'x': input should be a valid integer"),
        ("max_failed_share=1.5", "max_failed_share: 1.5: input should be less"),
        ("anchor.num_samples=1", "anchor.num_samples: 1: input should be greater"),
        ("anchor.style_set=all", "anchor.style_set: 'all': input should be 'authors', 'conv' or 'full'"),
        ("fit=zoom", "fit: 'zoom': input should be 'refuse'"),
        ("keep_noise=float64", "keep_noise: 'float64': input should be 'float32'"),
        ("embedding=5", "embedding: 5: input should be a valid dictionary"),
        ("shard_rows=0", "shard_rows: 0: input should be"),
        ("shard_rows=100016", "shard_rows: 100016: input should be less than or equal to 100000"),
        (
            "shard_rows=1600000000000000000000",
            "shard_rows: 1600000000000000000000: input should be less than or equal to 100000",
        ),
    ],
)
def test_a_wrong_change_is_refused_by_its_field(tmp_path: Path, change: str, message: str) -> None:
    path = write(tmp_path, {**SMALLEST, "seed": 1, "methods": ["lsap_o_w"]})
    with pytest.raises(ParameterError) as caught:
        InvertRun.read(path, [change])
    assert str(caught.value).startswith(message)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, {"archive": "a", "sead": 1, "workers": {"count": 0}})
    assert message.startswith("source: missing; ") and "sead: there is no such field" in message
    assert "workers.count: 0" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "run.yaml is not YAML"),
        ("- a\n- b", "run.yaml holds a list; wanted fields and their values"),
        ("only words", "run.yaml holds a str"),
        ("", "source: missing"),
        ("1: 2", "run.yaml cannot be used: the key 1 is no text"),
    ],
)
def test_a_file_that_is_no_run_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(tmp_path, text)


def test_a_file_of_other_bytes_or_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    with pytest.raises(ParameterError, match=r"image\.png does not exist"):
        InvertRun.read(str(path))
    path.write_bytes(b"\x89PNG\xff")
    with pytest.raises(ParameterError, match=r"image\.png is not YAML"):
        InvertRun.read(str(path))


def test_what_was_read_does_not_change(tmp_path: Path) -> None:
    run = InvertRun.read(write(tmp_path, SMALLEST))
    with pytest.raises(ValueError, match="frozen"):
        run.seed = 3  # type: ignore[misc]


# --- completed by the domain --------------------------------------------------------------------------


def test_the_domain_fills_in_what_the_run_leaves_open() -> None:
    resolved = InvertRun(**DIGITS).resolve(SETTINGS)
    place = resolved.generator.place
    assert place.endswith("digits/generator.safetensors") and Path(place).is_file()
    domain = load_domain("digits")
    assert (resolved.shard_rows, resolved.batch_size) == (domain.shard_rows, domain.batch_size)
    networks = resolved.networks
    assert (networks.perceptual, networks.metric_perceptual) == ("digits-features", "digits-features")
    assert (networks.identity, networks.judge, networks.published) == ("digits-features", "digits-judge", TORCH_CACHE)


def test_the_run_wins_over_its_domain(tmp_path: Path) -> None:
    run = InvertRun(
        **DIGITS,
        generator="own.pt",
        perceptual="lpips-vgg",
        shard_rows=48,
        batch_size=3,
        methods=("lsap_o_w", "stylegan2_w"),
        embedding={"num_steps": 7, "learning_rate": 1e-2},
        method_settings={"lsap_o_w": {"num_steps": 9}},
    )
    resolved = run.resolve(Settings(backbones=tmp_path))
    assert (resolved.generator.place, resolved.shard_rows, resolved.batch_size) == ("own.pt", 48, 3)
    assert (resolved.networks.perceptual, resolved.networks.metric_perceptual) == ("lpips-vgg", "lpips-vgg")
    assert resolved.networks.published == Published(tmp_path)
    settings = {method.name: method.settings for method in resolved.methods}
    assert list(settings) == ["lsap_o_w", "stylegan2_w"]  # in the order they were asked for
    assert {name: each.num_steps for name, each in settings.items()} == {"lsap_o_w": 9, "stylegan2_w": 7}
    assert {each.learning_rate for each in settings.values()} == {0.01}
    assert settings["lsap_o_w"].record_every == load_domain("digits").method("lsap_o_w").settings.record_every


def test_a_variant_is_a_published_method_under_its_own_name(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {
            **DIGITS,
            "methods": ["lsap_o_w_plus", "strong"],
            "variants": {"strong": {"method": "lsap_o_w_plus", "sncd_weight": 2}},
            "embedding": {"num_steps": 7},
        },
    )
    published, strong = InvertRun.read(path).resolve(SETTINGS).methods
    assert (strong.name, strong.title, strong.base) == ("strong", "LSAP_O-W+ (sncd_weight 2)", published.base)
    assert strong.settings == replace(published.settings, sncd_weight=2.0)


def test_encoders_are_methods_and_starts(tmp_path: Path) -> None:
    methods = ["e4e", "seed_1", "lsap_o_w_plus_from_lsap_e", "stylegan2_w"]
    path = write(tmp_path, {**DIGITS, "methods": methods, "encoders": {"lsap_e": "l.pt", "unused": "u.pt"}})
    changes = ["encoders.e4e=e.pt", "encoders.seed_1=s3://b/1.safetensors", "embedding={num_steps: 4}"]
    changes += ["method_settings.stylegan2_w={start: encoder, encoder: seed_1}", "embedding.num_refinements=2"]
    resolved = InvertRun.read(path, changes).resolve(SETTINGS)
    assert [(method.name, method.encoder) for method in resolved.methods] == [
        ("e4e", "e4e"),
        ("seed_1", "seed_1"),
        ("lsap_o_w_plus_from_lsap_e", "lsap_e"),
        ("stylegan2_w", "seed_1"),
    ]
    assert resolved.encoders == {"e4e": "e.pt", "seed_1": "s3://b/1.safetensors", "lsap_e": "l.pt"}
    passes, _, started, other = (method.settings for method in resolved.methods)
    assert passes == EncoderSettings(num_passes=2)
    assert (started.num_steps, started.start, other.start) == (4, "encoder", "encoder")


def test_the_content_box_of_the_domain_reaches_the_tasks(tmp_path: Path) -> None:
    domain = {"name": "cars", "description": "d", "perceptual": "lpips-vgg", "content_box": [64, 448, 0, 512]}
    (tmp_path / "cars.yaml").write_text(yaml.safe_dump(domain))
    run = InvertRun(**SMALLEST, domain=str(tmp_path / "cars.yaml"), generator="g.pt")
    assert run.resolve(SETTINGS).generator.content_box == (64, 448, 0, 512)


def test_labels_and_heads_of_run_and_domain_reach_the_tasks(tmp_path: Path) -> None:
    heads = {"mine": "offsets", "other": "direct"}
    domain = {"name": "d", "description": "d", "perceptual": "lpips-vgg", "label": 3, "heads": heads}
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(domain))
    values = {**SMALLEST, "domain": str(tmp_path / "d.yaml"), "generator": "g.pkl"}
    request = InvertRun(**values).resolve(SETTINGS)
    assert (request.generator.label, request.heads) == (3, heads)
    request = InvertRun(**values, label=0, heads={"mine": "single"}).resolve(SETTINGS)
    assert (request.generator.label, request.heads) == (0, {**heads, "mine": "single"})
    with pytest.raises(ValueError, match="label"):
        InvertRun(**values, label=-1)


def test_the_metric_of_the_domain_stays_when_the_run_changes_the_loss() -> None:
    values = {**SMALLEST, "generator": "g.pt"}
    networks = InvertRun(**values, perceptual="lpips-squeeze").resolve(SETTINGS).networks
    assert (networks.perceptual, networks.metric_perceptual) == ("lpips-squeeze", "lpips-alex")
    networks = InvertRun(**values, metric_perceptual="lpips-vgg").resolve(SETTINGS).networks
    assert (networks.perceptual, networks.metric_perceptual) == ("lpips-vgg", "lpips-vgg")


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, {**DIGITS, "methods": ["lsap_o_w"]})
    changes = ["embedding.noise_weight=1e3", "method_settings.lsap_o_w.learning_rate=2e-2", "embedding.sncd_weight=5"]
    (method,) = InvertRun.read(path, changes).resolve(SETTINGS).methods
    found = (method.settings.noise_weight, method.settings.learning_rate, method.settings.sncd_weight)
    assert found == (1000.0, 0.02, 5.0) and {type(value) for value in found} == {float}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"domain": "cats"}, 'domain: domain "cats" is not known'),
        ({"domain": "full_scale"}, 'generator: domain "full_scale" has no weights of its own'),
        ({"archive": "memory://a"}, "archive: memory://a lives in one process"),
        ({"methods": ()}, "methods: none given; wanted some of stylegan2_w"),
        ({"methods": ("lsap_o_w", "lsap_o_w")}, "methods: lsap_o_w, lsap_o_w names a method twice"),
        ({"methods": ("lsap",)}, 'methods[lsap]: method "lsap" is not known'),
        (
            {"methods": ("restyle_e4e",)},
            'methods[restyle_e4e]: domain "digits" has no encoder restyle_e4e; name a file: encoders.restyle_e4e=...',
        ),
        (
            {"methods": ("lsap_o_w",), "method_settings": {"lsap_o_w": {"start": "encoder", "encoder": "mine"}}},
            'methods[lsap_o_w]: domain "digits" has no encoder mine',
        ),
        ({"encoders": {"lsap_o_w": "a.pt"}}, 'encoders: an encoder is named "lsap_o_w"'),
        ({"embedding": {"start": "encoder"}}, 'methods[stylegan2_w_plus]: method stylegan2_w_plus: start is "encoder"'),
        ({"methods": ("lsap_o_w",), "method_settings": {"l2_w_plus": {}}}, 'method_settings: "l2_w_plus" is not among'),
        (
            {"methods": ("mine",), "variants": {"mine": {"num_steps": 3}}},
            "methods[mine]: the variant does not say",
        ),
        ({"methods": ("mine",), "variants": {"mine": {"method": "lsap"}}}, 'methods[mine]: method "lsap" is not known'),
        ({"methods": ("e4e",), "variants": {"e4e": {"method": "psp"}}}, "methods[e4e]: a method of that name is there"),
        ({"embedding": {"steps": 5}}, "methods[stylegan2_w_plus]: method stylegan2_w_plus has no setting 'steps'"),
        ({"embedding": {"num_steps": "many"}}, "methods[stylegan2_w_plus]: num_steps is 'many'; wanted a whole number"),
        ({"embedding": {"num_steps": 0}}, "methods[stylegan2_w_plus]: num_steps is 0; wanted at least 1"),
        (
            {"method_settings": {"lsap_o_w_plus": {"sncd_weight": None}}},
            "methods[lsap_o_w_plus]: sncd_weight is None; wanted a number",
        ),
        ({"shard_rows": 24}, "shard_rows: 24; wanted 1 to 16, or a multiple of 16"),
        ({"perceptual": "vgg"}, 'perceptual: perceptual network "vgg" is not known'),
        ({"perceptual": "digits-judge"}, 'perceptual: "digits-judge" is the network of the loss, so it cannot judge'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_exist_is_refused_by_its_field(values: dict[str, Any], message: str) -> None:
    assert unresolved(**values).startswith(message)


@pytest.mark.parametrize("shard_rows", [1, 5, 16, 32, 100_000])
def test_shards_that_the_archive_takes_are_taken(shard_rows: int) -> None:
    assert InvertRun(**DIGITS, shard_rows=shard_rows).resolve(SETTINGS).shard_rows == shard_rows


def test_a_domain_of_published_weights_finds_them_in_their_folder(tmp_path: Path) -> None:
    run = InvertRun(source="photos", archive="archive", domain="face", methods=("e4e", "stylegan2_w"))
    resolved = run.resolve(Settings(backbones=tmp_path))
    assert resolved.generator.place == str(tmp_path / "stylegan2-ffhq-config-f.pt")
    assert resolved.encoders == {"e4e": str(tmp_path / "e4e_ffhq_encode.pt")}
    own = InvertRun(source="photos", archive="archive", domain="face", generator="mine.pkl", methods=("stylegan2_w",))
    assert own.resolve(Settings(backbones=tmp_path)).generator.place == "mine.pkl"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("source=s3://AKIA:hunter2@bucket/images", "source carries a password"),
        ("archive=gs://hunter2@bucket/archive", "archive carries a password"),
        ("generator=https://host/g.pt?X-Amz-Signature=hunter2", "generator carries a signed query"),
        ("encoders={mine: 'https://host/e.pt?sig=hunter2'}", "encoders.mine carries a signed query"),
        ("methods=['https://me:hunter2@host/']", "methods carries a password"),
    ],
)
def test_a_credential_is_refused_by_its_field_and_not_repeated(change: str, field: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("source: digits:test\narchive: here\n")
    with pytest.raises(ParameterError) as caught:
        InvertRun.read(str(path), [change])
    assert field in str(caught.value) and "hunter2" not in str(caught.value)
    name, _, value = change.partition("=")
    with pytest.raises(ValueError, match="carries a") as directly:  # as from a form of the Prefect server
        InvertRun(**{"source": "digits:test", "archive": "here", name: yaml.safe_load(value)})
    assert "hunter2" not in f"{directly.value}{directly.value!r}"


def test_a_run_file_is_read_by_url(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/runs/run.yaml", b"source: digits:test\narchive: here\n")
    assert InvertRun.read("memory://runs/run.yaml", ["seed=3"]).seed == 3
    with pytest.raises(ParameterError, match=r"memory://runs/other\.yaml does not exist"):
        InvertRun.read("memory://runs/other.yaml")


def test_what_is_kept_of_noise_is_asked_of_all_methods_or_of_one() -> None:
    """Else the domain says it; an encoder has none to keep."""
    values = {"source": "photos", "archive": "here", "generator": "g.pt", "methods": ("lsap_o_w", "lsap_o_w_plus")}
    own = {"method_settings": {"lsap_o_w": {"keep_noise": "none"}}}
    for fields, wanted in (
        ({"domain": "full_scale"}, ["float16", "float16"]),
        ({"domain": "digits"}, ["float32", "float32"]),
        ({"domain": "face", "keep_noise": "float32", **own}, ["constant", "float32"]),
    ):
        resolved = InvertRun(**values, **fields).resolve(SETTINGS)
        assert [method.noise for method in resolved.methods] == wanted
    run = InvertRun(**DIGITS, keep_noise="float16", variants={"small": {"method": "lsap_o_w", "keep_noise": "none"}})
    small, encoder = run.model_copy(update={"methods": ("small", "e4e")}).resolve(SETTINGS).methods
    assert (small.noise, small.title, encoder.noise) == ("constant", "LSAP_O-W (keep_noise none)", "constant")
