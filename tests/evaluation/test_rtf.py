import pytest
import torch

from asrkd.evaluation.footprint import measure_footprint, measure_streams
from asrkd.evaluation.machine import describe
from asrkd.evaluation.rtf import macs_per_audio_second, measure_offline, measure_streaming
from asrkd.models import package


@pytest.fixture(scope="module")
def audio():
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(int(16000 * s), generator=generator) for s in (1.0, 0.55, 1.6)]


def test_offline(student, audio):
    before = torch.get_num_threads()
    timing = measure_offline(student, audio, batch=2, repeats=2)
    assert torch.get_num_threads() == before
    assert timing.audio_s == pytest.approx(3.15)
    assert 0 < timing.rtf_low <= timing.rtf <= timing.rtf_high
    assert timing.rtfx == pytest.approx(1 / timing.rtf)
    assert (timing.mode, timing.threads, timing.batch, timing.precision) == ("offline", 1, 2, "float32")


def test_streaming_times_every_chunk(student, audio):
    timing = measure_streaming(student, audio, repeats=1)
    assert timing.chunk_ms == 320
    assert 0 < timing.chunk_median_ms <= timing.chunk_p99_ms <= timing.chunk_slowest_ms
    # The chunks of a second of audio cannot take longer than the repeat.
    assert timing.chunk_median_ms < 1000 * timing.rtf * timing.audio_s


def test_streaming_needs_a_streaming_model(teacher, audio):
    with pytest.raises(ValueError, match="a speechbrain_conformer hears whole utterances"):
        measure_streaming(teacher, audio)
    with pytest.raises(ValueError, match="expected some audio"):
        measure_offline(teacher, [])


def test_macs_grow_with_the_model(student, teacher):
    # Each parameter of the blocks is used once a frame of 40 ms or more often: a lower bound from the geometry.
    encoder = sum(p.numel() for p in student.blocks.parameters())
    assert macs_per_audio_second(student) > 0.9 * encoder * 25
    assert macs_per_audio_second(teacher) > macs_per_audio_second(student)


def test_machine():
    machine = describe()
    assert machine.cpu
    assert machine.cpu_cores >= 1
    assert machine.gpu is None
    assert machine.torch == torch.__version__


def test_a_fresh_process_tells_its_start_up_and_memory(student, tmp_path):
    package.save(student, tmp_path / "package")
    found = measure_footprint(tmp_path / "package")
    assert 0 < found.start_up_s < 300 and found.peak_host_bytes > 50e6 and found.threads == 1
    with pytest.raises(OSError, match=r"config\.json is missing"):
        measure_footprint(tmp_path)


def test_streams_are_doubled_until_one_chunk_is_late(student):
    held = measure_streams(student, limit=4, chunks=2)
    assert held.streams == 4 and held.beyond_ms is None and 0 < held.slowest_ms <= held.chunk_ms == 320
    before = torch.get_num_threads()
    late = measure_streams(student, limit=2**30, chunks=1)
    assert late.beyond_ms is not None and late.beyond_ms > 320 >= late.slowest_ms and late.streams >= 4
    assert torch.get_num_threads() == before
