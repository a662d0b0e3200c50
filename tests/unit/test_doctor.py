"""`dsm doctor`: a line for everything, a way out for what is missing, never a traceback."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dsm_engine import doctor
from dsm_engine.cli import main
from dsm_engine.doctor import Finding, findings, is_fit
from dsm_engine.sandbox import SandboxStatus


@pytest.fixture(autouse=True)
def _fresh_probe() -> Iterator[None]:
    doctor._probe.cache_clear()
    yield
    doctor._probe.cache_clear()


def found(name: str) -> Finding:
    (check,) = (check for called, check in doctor.CHECKS if called == name)
    return check()


def probe_says(monkeypatch: pytest.MonkeyPatch, report: dict[str, Any]) -> None:
    monkeypatch.setattr(doctor, "_probe", lambda: {"errors": {}} | report)


def test_this_machine_is_fit_and_everything_has_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[5:25].strip() for line in lines] == [name for name, _ in doctor.CHECKS]


def test_findings_carry_the_names_of_their_checks() -> None:
    assert [finding.name for finding in findings()] == [name for name, _ in doctor.CHECKS]
    assert {name for name, _ in doctor.CHECKS} >= doctor.REQUIRED


def test_a_check_that_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Finding:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(doctor, "CHECKS", (("torch", fail),))
    (finding,) = findings()
    assert finding.state == "broken" and finding.text.endswith("RuntimeError: first")
    assert main(["doctor"]) == 1


def test_only_what_every_run_needs_decides() -> None:
    assert not is_fit([Finding(name="torch", state="broken", text="")])
    assert is_fit([Finding(name="bubblewrap", state="broken", text="")])


def test_a_torch_that_does_not_load_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    probe_says(monkeypatch, {"errors": {"torch": "OSError: libcudart.so"}})
    assert found("torch").state == "broken" and "libcudart.so" in found("torch").text


def test_a_probe_that_crashes_or_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PROBE", "import os; os.abort()")
    assert "ends the process" in found("torch").text
    doctor._probe.cache_clear()
    monkeypatch.setattr(doctor, "_PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "_PROBE_TIMEOUT_S", 0.2)
    assert "does not load within" in found("torch").text


def test_devices_and_packages_over_them(monkeypatch: pytest.MonkeyPatch) -> None:
    device = ["Card", 79.2, 9, 0]
    torch = {"version": "2.11", "cuda": "12.8", "devices": [device]}
    probe_says(monkeypatch, {"torch": torch, "errors": {"flash_attn": "ImportError: symbol"}})
    assert found("CUDA devices").text == "Card (79 GiB, compute capability 9.0)"
    assert found("torch").text == "2.11, built for CUDA 12.8"
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    assert found("flash-attn").state == "broken" and "symbol" in found("flash-attn").text


def test_attention_backends_have_a_line_each_and_auto_says_its_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attention: dict[str, Any] = {
        "backends": {
            "te": {"what": "Transformer Engine", "why_not": None},
            "flash3": {"what": "FlashAttention 3", "why_not": "is not installed"},
        },
        "auto": {"bf16": "te", "fp32": "split"},
    }
    probe_says(monkeypatch, {"attention": attention})
    assert found("attention").text == "auto takes te in bf16, split in fp32"
    te, flash3, dense = (found(f"attention: {name}") for name in ("te", "flash3", "dense"))
    assert (te.state, te.text) == ("ok", "Transformer Engine")
    assert (flash3.state, flash3.text) == ("absent", "is not installed")
    assert dense.state == "absent"
    attention["auto"]["bf16"] = "split"
    assert found("attention").text == "auto takes split"


def test_an_engine_whose_models_do_not_load_has_a_broken_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probe_says(monkeypatch, {"errors": {"attention": "ImportError: libtorch"}})
    assert found("attention").state == "broken" and "libtorch" in found("attention").text
    assert found("attention: split").state == "absent"


@pytest.mark.parametrize(
    ("report", "state", "text"),
    [
        ({"cuda_operators": [None, None]}, "ok", "built"),
        ({}, "ok", "built"),
        (
            {"cuda_operators": [None, "the driver is old"]},
            "broken",
            "built, and do not run: the driver is old",
        ),
        (
            {"errors": {"dsm_engine._cuda": "ImportError: symbol"}},
            "broken",
            "does not load: ImportError: symbol",
        ),
    ],
)
def test_built_cuda_operators_have_to_run_on_the_devices(
    monkeypatch: pytest.MonkeyPatch, report: dict[str, Any], state: str, text: str
) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    probe_says(monkeypatch, report)
    assert (found("CUDA operators").state, found("CUDA operators").text) == (state, text)


def test_the_probe_of_a_machine_prints_json() -> None:
    done = subprocess.run(
        [sys.executable, "-c", doctor._PROBE], capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["torch"]["version"] and set(report["attention"]) == {"backends", "auto"}


def test_a_missing_bubblewrap_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found("bubblewrap").state == "absent"
    assert "apt-get install bubblewrap" in found("bubblewrap").text


def test_namespaces_that_are_turned_off_come_with_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status = SandboxStatus(available=False, reason="bwrap refuses to start")
    monkeypatch.setattr(doctor, "find_bwrap", lambda: "/usr/bin/bwrap")
    monkeypatch.setattr(doctor, "sandbox_status", lambda: status)
    monkeypatch.setattr(doctor, "_read", lambda path: "1" if "apparmor" in path.name else "9")
    assert found("bubblewrap").state == "broken"
    assert "kernel.apparmor_restrict_unprivileged_userns=0" in found("bubblewrap").text
    assert "max_user_namespaces" not in found("bubblewrap").text
