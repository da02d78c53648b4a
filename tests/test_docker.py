"""The files of `docker/` as far as they can be checked without a Docker daemon."""

from __future__ import annotations

import base64
import fnmatch
import http.client
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import typer
import yaml
from packaging.specifiers import SpecifierSet
from sqlalchemy import make_url

from sft_tune.cli.app import app
from sft_tune.run.serve import serve
from sft_tune.spec.resources import ResourcesSpec
from sft_tune.store.urls import resolve_url

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docker"
FILES = [*sorted(p for p in FOLDER.iterdir() if p.is_file()), ROOT / ".dockerignore"]
TEXTS = {file.name: file.read_text(encoding="utf8") for file in FILES if file.name != ".env"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
REQUIRED = {"POSTGRES_PASSWORD": "p@ss:w/o#r d"}
LOADED = ("compose.yaml", "compose.gpu.yaml")


class Instruction(NamedTuple):
    word: str
    rest: str


def stages() -> list[list[Instruction]]:
    """Return the instructions of each stage; those before the first FROM are left out."""
    lines = [line for line in TEXTS["Dockerfile"].splitlines() if not line.startswith("#")]
    found: list[list[Instruction]] = []
    for line in "\n".join(lines).replace("\\\n", "\n\\").split("\n"):
        if line.startswith("\\"):
            last = found[-1].pop()
            found[-1].append(Instruction(last.word, f"{last.rest} {line[1:].strip()}"))
        elif line.strip():
            word, _, rest = line.partition(" ")
            if word == "FROM":
                found.append([])
            if found:
                found[-1].append(Instruction(word, rest))
    return found


FINAL = stages()[-1]


def only(word: str) -> str:
    """Return what the final stage says in its one instruction ``word``."""
    (rest,) = [each.rest for each in FINAL if each.word == word]
    return rest


def argument(name: str) -> str:
    """Return the default of the build argument ``name``."""
    (value,) = set(re.findall(rf"^ARG {name}=(.*)$", TEXTS["Dockerfile"], flags=re.M))
    return str(value)


def image_environment() -> dict[str, str]:
    pairs = [pair for each in FINAL if each.word == "ENV" for pair in shlex.split(each.rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def interpolate(value: Any, given: dict[str, str]) -> Any:
    """Return ``value`` with its ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?why}`` filled in.

    Raises:
        KeyError: for a required variable that is not given.
    """
    if isinstance(value, dict):
        return {key: interpolate(each, given) for key, each in value.items()}
    if isinstance(value, list):
        return [interpolate(each, given) for each in value]

    def fill(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if kind == ":-":
            return given.get(name) or rest
        return given[name]

    is_text = isinstance(value, str)
    return re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", fill, value) if is_text else value


def merged(base: Any, over: Any, key: str = "") -> Any:
    """Return ``base`` with the override ``over``, by the rules of Compose."""
    if isinstance(base, dict) and isinstance(over, dict):
        parts = {k: merged(base[k], over[k], k) if k in base else over[k] for k in over}
        return {**base, **parts}
    if isinstance(base, list) and isinstance(over, list) and key not in ("command", "entrypoint"):
        return base + over
    return over


def compose(*names: str, **given: str) -> dict[str, Any]:
    """Return the Compose files ``names`` as one, variables filled in."""
    whole: Any = {}
    for name in names:
        whole = merged(whole, yaml.safe_load(TEXTS[name]))
    return dict(interpolate(whole, {**REQUIRED, **given}))


PLAIN = compose("compose.yaml")
SERVICES: dict[str, dict[str, Any]] = PLAIN["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]


def taken(words: list[str]) -> None:
    """Parse ``words`` as the command line does; fail where it would refuse them."""
    commands: dict[str, click.Command] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    name, *rest = words
    assert name in commands, f"sft-tune has no command {name}"
    commands[name].make_context(name, rest)


def documented() -> list[tuple[str, list[str]]]:
    """Return the docker commands in the comments of all files, with continued lines joined."""
    calls = []
    for name, text in TEXTS.items():
        comments = re.sub(r"\\\n#", "", text)
        calls += [
            (name, shlex.split(line)) for line in re.findall(r"^# +(docker .*)$", comments, re.M)
        ]
    return calls


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


# The image


def test_every_file_that_is_copied_exists_and_reaches_the_builder() -> None:
    sources = [
        source
        for stage in stages()
        for each in stage
        if each.word == "COPY"
        for source in each.rest.split()[:-1]
    ]
    assert {"pyproject.toml", "README.md", "sft_tune"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


def ignored(path: str) -> bool:
    """Tell whether `.dockerignore` keeps ``path`` from the builder: the last rule that fits."""
    lines = [line.strip() for line in TEXTS[".dockerignore"].splitlines()]
    result = False
    for line in lines:
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        heads = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        tails = parts if "**/" in line else []
        if any(
            fnmatch.fnmatchcase(each, pattern) and ("*" != pattern or "/" not in each)
            for each in (*heads, *tails)
        ):
            result = not line.startswith("!")
    return result


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        ".mypy_cache/x.json",
        ".pytest_cache/x",
        "sft_tune.db",
        "sft_tune.db-wal",
        "sft_tune/deep/other.db",
        "sft_tune_runs/quickstart/best.safetensors",
        "sft_tune/cli/__pycache__/app.pyc",
        "docker/.env",
        "tests/conftest.py",
        "studies/quickstart_backbone.safetensors",
    ],
)
def test_the_builder_is_not_sent_what_the_image_does_not_need(path: str) -> None:
    assert ignored(path)


def test_the_python_of_the_image_is_one_that_the_package_takes() -> None:
    assert SpecifierSet(PROJECT["requires-python"]).contains(argument("PYTHON"))
    bases = [stage[0].rest.split()[0] for stage in stages()]
    assert set(bases) == {"python:${PYTHON}-slim"}


def test_the_user_is_not_root_from_before_the_entrypoint_on() -> None:
    words = [each.word for each in FINAL]
    user, _, group = only("USER").partition(":")
    assert user.isdigit() and int(user) > 0 and group == user
    assert words.index("USER") > max(n for n, word in enumerate(words) if word in ("RUN", "COPY"))
    made = next(each.rest for each in FINAL if "useradd" in each.rest)
    assert f"--uid {user} " in made
    assert all("user" not in SERVICES[name] for name in OURS)
    tmpfs = [each for name in OURS for each in SERVICES[name].get("tmpfs", [])]
    assert tmpfs and all(f"uid={user},gid={group}" in each for each in tmpfs)


def test_the_entrypoint_is_our_program_and_ends_by_sigterm() -> None:
    (name,) = json.loads(only("ENTRYPOINT"))
    assert name in PROJECT["scripts"]
    assert json.loads(only("CMD")) == ["--help"]
    assert only("STOPSIGNAL") == "SIGTERM"


def test_code_comes_after_what_takes_long_to_install() -> None:
    runs = [each.rest for each in FINAL if each.word == "RUN"]
    places = [
        next(n for n, run in enumerate(runs) if what in run)
        for what in ("source=/build/torch.txt", "source=/build/all.txt", "from=wheel")
    ]
    assert places == sorted(places)
    # Nothing of the package is in the final stage, or in the lists, before its wheel comes.
    first, wheel, _ = stages()
    assert not any("sft_tune" in each.rest for each in first)
    assert any("pip wheel" in each.rest for each in wheel)
    assert not [each for each in FINAL if each.word == "COPY"]


def test_installing_leaves_no_cache_and_no_build_tools() -> None:
    for stage in stages():
        for each in stage:
            if each.word == "RUN" and "pip install" in each.rest:
                assert "type=cache,target=/root/.cache/pip" in each.rest or (
                    "--no-cache-dir" in each.rest
                )
    assert not re.search(r"apt-get|build-essential|gcc", TEXTS["Dockerfile"])


@pytest.mark.parametrize(
    ("torch", "index", "expected"),
    [
        ("cpu", "", "install --requirement /tmp/torch.txt"),
        ("cpu", "file:///an index", "install --index-url file:///an index --requirement"),
        ("cuda", "", "install --requirement /tmp/torch.txt"),
        ("cuda", "file:///an index", "install --requirement /tmp/torch.txt"),
        ("rocm", "", None),
    ],
)
def test_the_build_of_torch_is_the_one_asked_for(
    tmp_path: Path, torch: str, index: str, expected: str | None
) -> None:
    (run,) = [each.rest for each in FINAL if each.word == "RUN" and "torch.txt" in each.rest]
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\necho "$@"\n', encoding="utf8")
    pip.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", re.sub(r"--mount=\S+ *", "", run)],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "TORCH": torch, "TORCH_INDEX": index},
        capture_output=True,
        text=True,
        check=False,
    )
    if expected is None:
        assert done.returncode == 2
        assert "must be cpu or cuda (got rocm)" in done.stderr
    else:
        assert done.returncode == 0
        assert done.stdout.startswith(expected)


def requirements(folder: Path, extras: str) -> subprocess.CompletedProcess[str]:
    script, project = str(FOLDER / "requirements.py"), str(ROOT / "pyproject.toml")
    return subprocess.run(
        [sys.executable, script, project, str(folder), extras],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_lists_for_pip_are_those_of_pyproject(tmp_path: Path) -> None:
    extras = argument("EXTRAS").split(",")
    assert "postgresql" in extras  # what the Compose files' database needs
    assert requirements(tmp_path, ",".join(extras)).returncode == 0
    heavy = (tmp_path / "torch.txt").read_text(encoding="utf8").splitlines()
    bounds = [line for line in PROJECT["dependencies"] if re.match(r"torch(vision)?\b", line)]
    assert len(heavy) == 2 and heavy == bounds
    optional = PROJECT["optional-dependencies"]
    everything = [*PROJECT["dependencies"], *(line for name in extras for line in optional[name])]
    assert (tmp_path / "all.txt").read_text(encoding="utf8").splitlines() == everything


def test_an_extra_that_does_not_exist_ends_the_build(tmp_path: Path) -> None:
    done = requirements(tmp_path, "postgresql, oracle")
    assert done.returncode == 1
    assert "(got oracle); it has postgresql" in done.stderr
    assert not list(tmp_path.glob("*.txt"))


# The Compose files


def test_the_image_carries_the_version_of_the_package() -> None:
    version = PROJECT["version"]
    whole = compose(*LOADED)["services"]
    assert {SERVICES[name]["image"] for name in OURS} == {f"sft_tune:{version}"}
    assert {whole[name]["image"] for name in OURS} == {f"sft_tune:{version}-cuda"}


def test_the_paths_of_the_build_exist() -> None:
    for name in OURS:
        build = SERVICES[name]["build"]
        assert (FOLDER / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        for argument_name in build["args"]:
            assert f"ARG {argument_name}=" in TEXTS["Dockerfile"]


def test_the_override_adds_gpus_and_cuda_and_changes_nothing_else() -> None:
    whole = compose(*LOADED)
    assert {k: v for k, v in whole.items() if not k.startswith("x-")}.keys() == {
        k for k in PLAIN if not k.startswith("x-")
    }
    (device,) = whole["services"]["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["count"] == "all"
    assert {"gpu", "utility"} <= set(device["capabilities"])
    for name, service in whole["services"].items():
        before = SERVICES[name]
        assert service.keys() - before.keys() == ({"deploy"} if name == "worker" else set())
        same = [key for key in before if key not in ("image", "build")]
        assert {key: service[key] for key in same} == {key: before[key] for key in same}
        if name in OURS:
            assert before["build"]["args"]["TORCH"] == "cpu"
            assert service["build"]["args"]["TORCH"] == "cuda"
            assert service["build"]["context"] == before["build"]["context"]


@pytest.mark.parametrize("options", ["", "--threads 2 --devices cpu", "--trials-per-device 2"])
def test_the_worker_is_a_command_that_the_program_takes(options: str) -> None:
    taken(shlex.split(compose(*LOADED, WORKER_OPTIONS=options)["services"]["worker"]["command"]))


def test_commands_in_comments_are_ones_that_the_program_takes() -> None:
    calls = documented()
    ours = [words for _, words in calls if {"run", "up", "build", "logs"} & set(words)]
    assert len(ours) == len(calls) >= 7
    inside = []
    for _, words in calls:
        for file in [word for word in words if re.search(r"docker/\S+$", word)]:
            assert (ROOT / file).is_file()
        if "run" in words:
            start = words.index("worker" if "compose" in words else "sft_tune") + 1
            inside.append(words[start:])
    assert {words[0] for words in inside} >= {"submit", "start", "status"}
    for words in inside:
        taken(words)
        for file in [word for word in words if word.startswith("studies/")]:
            assert (ROOT / file).is_file()


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_words_in_backticks_are_commands_and_options(name: str) -> None:
    for words in re.findall(r"`sft-tune ([^`]+)`", TEXTS[name]):
        taken(words.split())
    options = {
        flag
        for command in typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
        for flag in parameter.opts
    }
    for flag in re.findall(r"(?:WORKER_OPTIONS=\"|`)(--[\w-]+)", TEXTS[name]):
        assert flag in options | {"--scale", "--file"}, flag


def test_every_variable_of_ours_is_one_that_the_package_reads() -> None:
    sources = [file.read_text(encoding="utf8") for file in (ROOT / "sft_tune").rglob("*.py")]
    read = {name for text in sources for name in re.findall(r'"(SFT_TUNE_\w+)"', text)}
    named = {name for text in TEXTS.values() for name in re.findall(r"\bSFT_TUNE_\w+", text)}
    assert {"SFT_TUNE_STORAGE", "SFT_TUNE_CACHE"} <= named <= read


def test_the_password_has_no_default_and_stays_out_of_the_url() -> None:
    uses = re.findall(r"\$\{?POSTGRES_PASSWORD[^}]*", TEXTS["compose.yaml"])
    assert uses and all(use.startswith("${POSTGRES_PASSWORD:?") for use in uses)
    with pytest.raises(KeyError):
        interpolate(yaml.safe_load(TEXTS["compose.yaml"]), {})
    server = SERVICES["database"]["environment"]
    for name in OURS:
        ours = SERVICES[name]["environment"]
        url = make_url(resolve_url(ours["SFT_TUNE_STORAGE"]))
        assert url.password is None
        assert url.drivername == "postgresql+psycopg"
        assert (url.host, url.username, url.database) == (
            "database",
            server["POSTGRES_USER"],
            server["POSTGRES_DB"],
        )
        assert ours["PGPASSWORD"] == server["POSTGRES_PASSWORD"] == REQUIRED["POSTGRES_PASSWORD"]


def test_every_other_variable_has_a_default_and_is_explained() -> None:
    text = TEXTS["compose.yaml"]
    for name, kind in re.findall(r"\$\{(\w+)(:[-?])?", text):
        assert kind == (":?" if name in REQUIRED else ":-"), name
        assert re.search(rf"^#   {name}\b", text, flags=re.M), name


def test_ours_wait_for_a_database_that_answers() -> None:
    server = SERVICES["database"]
    assert server["image"].startswith("postgres:")
    assert "pg_isready" in server["healthcheck"]["test"]
    assert "database:/var/lib/postgresql/data" in server["volumes"]
    assert "ports" not in server
    for name in OURS:
        assert SERVICES[name]["depends_on"] == {"database": {"condition": "service_healthy"}}


def test_a_worker_has_more_time_to_end_than_its_trials_may_take() -> None:
    grace = seconds(SERVICES["worker"]["stop_grace_period"])
    assert grace > ResourcesSpec().grace_seconds
    assert grace > inspect.signature(serve).parameters["grace_seconds"].default
    assert SERVICES["worker"]["init"] is True  # it passes SIGTERM on
    assert SERVICES["worker"]["restart"] == "unless-stopped"


def test_workers_scale_since_none_has_a_name_or_a_port_of_its_own() -> None:
    assert not {"container_name", "hostname", "ports"} & SERVICES["worker"].keys()


def test_ports_are_of_this_machine_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:8080:8080"]
    assert compose("compose.yaml", DASHBOARD_PORT="9")["services"]["dashboard"]["ports"] == [
        "127.0.0.1:9:8080"
    ]
    assert "network_mode" not in TEXTS["compose.yaml"]


def test_volumes_are_where_the_image_keeps_things() -> None:
    mounts = [each.split(":") for each in SERVICES["worker"]["volumes"]]
    targets = {target: source for source, target, *_ in mounts}
    work, environment = only("WORKDIR"), image_environment()
    assert targets[f"{work}/sft_tune_runs"] == "artifacts"
    assert targets[environment["XDG_CACHE_HOME"]] == "cache"
    assert Path(environment["SFT_TUNE_CACHE"]).parent == Path(environment["XDG_CACHE_HOME"])
    assert set(json.loads(only("VOLUME"))) == {"/cache", f"{work}/sft_tune_runs"} <= set(targets)
    assert (FOLDER / targets[f"{work}/studies"]).resolve() == ROOT / "studies"
    made = next(each.rest for each in FINAL if "install --directory" in each.rest).split()
    assert {*json.loads(only("VOLUME")), environment["SFT_TUNE_CACHE"]} <= set(made)
    named = {
        mount.split(":")[0]
        for service in SERVICES.values()
        for mount in service.get("volumes", [])
        if not mount.startswith(".")
    }
    assert named == set(PLAIN["volumes"])


def test_no_registry_is_named() -> None:
    for name, text in TEXTS.items():
        hosts = re.findall(r"://(?:[^@/\s]*@)?([\w.-]+)", text)
        assert set(hosts) <= {"127.0.0.1", "database"}, name
        assert not re.search(r"\b[\w-]+\.(?:org|com|io|net|dev|ai|cloud)\b", text), name
    images = [service["image"] for service in SERVICES.values()]
    assert all("/" not in image and image.count(":") == 1 for image in images)


# The dashboard


def probe(port: int) -> int:
    """Run the health check of the dashboard's service against ``port``; return its exit code."""
    command, interpreter, flag, code = SERVICES["dashboard"]["healthcheck"]["test"]
    assert (command, interpreter, flag) == ("CMD", "python", "-c")
    assert code.count("127.0.0.1:8080/") == 1
    call = [sys.executable, "-c", code.replace(":8080/", f":{port}/")]
    return subprocess.run(call, capture_output=True, timeout=60, check=False).returncode


def test_the_dashboard_of_the_container_asks_for_its_password_and_is_healthy(
    tmp_path: Path,
) -> None:
    service = compose("compose.yaml", DASHBOARD_TOKEN="twelve letters")["services"]["dashboard"]
    words = shlex.split(service["command"])
    taken(words)
    assert "entrypoint" not in service  # the image's: sft-tune
    place = words.index("--port") + 1
    assert service["ports"][0].endswith(f":{words[place]}")
    words[place] = "0"
    environment = {**os.environ, **service["environment"]}
    program = subprocess.Popen(
        [sys.executable, "-c", "from sft_tune.cli.app import main; main()", *words],
        env={**environment, "SFT_TUNE_STORAGE": str(tmp_path / "x.db")},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        port = int(program.stdout.readline().rpartition(":")[2].split("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        account = base64.b64encode(b"me:twelve letters").decode()
        for headers, status in (({}, 401), ({"Authorization": f"Basic {account}"}, 200)):
            connection.request("GET", "/api/studies", headers=headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status
        connection.close()
        assert probe(port) == 0
    finally:
        program.kill()
        program.communicate()
    assert probe(port) != 0


def test_the_dashboard_without_a_token_of_its_own_makes_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # An empty variable is none: the command line then makes a password, and prints it.
    assert SERVICES["dashboard"]["environment"]["SFT_TUNE_DASHBOARD_TOKEN"] == ""
    command = typer.main.get_command(app).commands["dashboard"]  # type: ignore[attr-defined]
    monkeypatch.setenv("SFT_TUNE_DASHBOARD_TOKEN", "")
    assert command.make_context("dashboard", []).params["token"] is None


# Docker's own reading


def has_compose() -> bool:
    try:
        call = ["docker", "compose", "version"]
        return subprocess.run(call, capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


HAS_COMPOSE = has_compose()

# Where a skip counts as a failure (see conftest.py) it is not collected without the plugin, which
# no installation of the package brings.
if HAS_COMPOSE or os.environ.get("SFT_TUNE_TEST_NO_SKIP") != "1":

    @pytest.mark.skipif(not HAS_COMPOSE, reason="needs docker with its compose plugin")
    @pytest.mark.parametrize("names", [LOADED[:1], LOADED])
    def test_docker_compose_reads_the_files_as_we_do(names: tuple[str, ...]) -> None:
        files = [word for name in names for word in ("--file", str(FOLDER / name))]
        call = ["docker", "compose", *files, "config", "--format", "json"]
        without = {k: v for k, v in os.environ.items() if k not in REQUIRED}
        done = subprocess.run(call, env={**without, **REQUIRED}, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        found = json.loads(done.stdout)["services"]
        ours = compose(*names)["services"]
        assert found.keys() == ours.keys()
        for name, service in ours.items():
            assert found[name]["image"] == service["image"]
            assert found[name].get("environment") == service.get("environment")
        assert ("deploy" in found["worker"]) == ("deploy" in ours["worker"])
