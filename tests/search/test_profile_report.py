"""A profile as tables and as a picture."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from hardware.presets import preset
from hardware.profile import Profile, calibrated
from hardware.profile.calibration import Calibration, Coefficients
from search.profile_report import collective_traces, draw, graph_traces, heading, matrix_trace, tables
from tests.hardware.test_profile import made_up_profile
from tests.search.conftest import Grow


def printed(profile: Profile) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    for part in tables(profile):
        console.print(part)
    return console.export_text()


def test_every_link_device_and_kernel_is_in_the_tables() -> None:
    text = printed(made_up_profile())
    assert "measured elsewhere: 4 x cpu (nowhere)" in text
    assert text.count("20 us, 1 GB/s") == 4 * 3
    assert all(f"nowhere/worker{place}" in text for place in range(4))
    dense = next(line for line in text.splitlines() if line.split()[:1] == ["dense"])
    assert dense.split()[-2:] == ["60", "-"]  # 6 operations a product in 1e-10 s


def test_a_preset_shows_its_sources_and_a_calibrated_profile_its_errors() -> None:
    text = " ".join(printed(preset("infiniband-2x8")).split())
    assert "simulated: 16 x NVIDIA H100 SXM (infiniband-2x8), from its data sheet" in text
    assert "tuning.cc" in text
    calibration = Calibration("2026-01-01", 30, 0.051, 0.2, 0.95, ("single",), {}, {})
    assert "median 5.10 %, worst 20.00 %, tau 0.95 on 30 held-out cases" in printed(
        calibrated(made_up_profile(), Coefficients(), calibration)
    )


def test_the_picture_has_all_devices_links_and_collectives(tmp_path: Path) -> None:
    profile = preset("infiniband-2x8")
    *links, devices = graph_traces(profile)
    assert len(links) == 120
    assert {trace.name for trace in links} == {"NVLink 4", "InfiniBand NDR"}
    assert sum(bool(trace.showlegend) for trace in links) == 2
    assert links[0].line.width > max(trace.line.width for trace in links if trace.name == "InfiniBand NDR")
    assert len(devices.x) == 16
    assert matrix_trace(profile).z[0][8] == pytest.approx(50)
    assert all(len(trace.x) > 5 for trace in collective_traces(profile))
    draw(profile, tmp_path / "picture.html")
    page = (tmp_path / "picture.html").read_text()
    assert heading(profile) in page
    assert 'src="https' not in page


def test_the_command_shows_another_machine_under_its_word(grow: Grow, tmp_path: Path) -> None:
    done = grow("profile", "--hardware", "pcie-2", "--json", "--save", "there.json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert (found["word"], len(found["devices"])) == ("simulated", 2)
    assert Profile.load(tmp_path / "there.json") == preset("pcie-2")


@pytest.mark.slow
def test_a_run_for_another_machine_measures_nothing_and_says_simulated(grow: Grow, tiny: str, tmp_path: Path) -> None:
    done = grow("run", "--study", tiny, "--gpus", "4", "--trials", "3", "--hardware", "nvlink-8", "--json", cwd=tmp_path)
    assert "planning for 8 x NVIDIA H100 SXM (nvlink-8), which is not this machine" in done.stderr
    found = json.loads(done.stdout)
    assert found["devices"]["elsewhere"] == "8 x NVIDIA H100 SXM (nvlink-8)"
    assert found["trials"][0]["state"] == found["trials"][1]["state"] == "complete"
    for trial in found["trials"][:2]:
        assert trial["throughput"]["simulated_samples_per_s"] > 0
        assert trial["throughput"]["predicted_samples_per_s"] is trial["throughput"]["measured_samples_per_s"] is None
