"""Corpora that come as tables, Kaldi directories, lhotse recipes and archives; Shar."""

from __future__ import annotations

import hashlib
import http.server
import json
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from asrkd.data.batching import load_batch
from asrkd.data.corpora import CorpusReport, Listing, load_cuts, write_corpus
from asrkd.data.download import Archive, disk_need_bytes, download_librispeech
from asrkd.data.lhotse_recipes import prepare_with_lhotse, recipe_names
from asrkd.data.shar import write_shar
from asrkd.data.tables import TableOptions, list_kaldi, list_table


def _audio(path: Path, seconds: float = 0.5, level: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(round(16000 * seconds), level), 16000)
    return path


def _write(out: Path, listing: Listing) -> CorpusReport:
    return write_corpus(out, "table", out, {"all": lambda: listing})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", 'path\tsentence\tclient_id\na.flac\tHELLO "YOU\tanna\nsub/b.flac\tWORLD\tbert\n'),
        (
            "t.csv",
            'ID, duration, wav, spk_id, wrd\nx,0.5,$data_root/a.flac,anna,"HELLO ""YOU"\ny,0.5,sub/b.flac,bert,WORLD\n',
        ),
        (
            "t.jsonl",
            '{"audio_filepath": "a.flac", "text": "HELLO \\"YOU", "speaker": "anna", "duration": 0.5}\n'
            '{"audio_filepath": "sub/b.flac", "text": "WORLD", "speaker": "bert"}\n',
        ),
        (
            "t.json",
            json.dumps(
                {
                    "x": {"wav": "{data_root}/a.flac", "length": 0.5, "words": ["HELLO", '"YOU'], "spk_id": "anna"},
                    "y": {"wav": "sub/b.flac", "words": "WORLD", "spk_id": "bert"},
                }
            ),
        ),
    ],
)
def test_tables(tmp_path: Path, name: str, content: str) -> None:
    _audio(tmp_path / "a.flac")
    _audio(tmp_path / "sub" / "b.flac")
    (tmp_path / name).write_text(content)
    report = _write(tmp_path / "out", list_table(tmp_path / name))
    assert not report.problems
    cuts = list(load_cuts(tmp_path / "out", "all"))
    assert [cut.supervisions[0].text for cut in cuts] == ['HELLO "YOU', "WORLD"]
    assert [cut.supervisions[0].speaker for cut in cuts] == ["anna", "bert"]
    assert [cut.id for cut in cuts] == (["a", "b"] if name in ("t.tsv", "t.jsonl") else ["x", "y"])
    assert load_batch(cuts, None).audio_lengths.tolist() == [8000, 8000]


def test_pieces_of_a_longer_file(tmp_path: Path) -> None:
    samples = np.concatenate([np.full(16000, 0.1), np.full(16000, 0.3)])
    soundfile.write(tmp_path / "long.wav", samples, 16000)
    (tmp_path / "t.tsv").write_text(
        "id\taudio\ttext\tstart\tend\none\tlong.wav\tA\t0.0\t1.0\ntwo\tlong.wav\tB\t1.25\t2.0\n"
        "bad\tlong.wav\tC\t3\t4\nworse\tlong.wav\tD\tx\t4\n"
    )
    report = _write(tmp_path / "out", list_table(tmp_path / "t.tsv"))
    batch = load_batch(load_cuts(tmp_path / "out", "all"), None)
    assert batch.ids == ("one", "two")
    assert batch.audio_lengths.tolist() == [16000, 12000]
    np.testing.assert_allclose(batch.audio[1, :12000].numpy(), 0.3, atol=1e-4)
    assert len(report.problems) == 2
    assert any("bad" in line and "2.00 s" in line for line in report.problems)
    assert any("line 5: start: expected seconds, found 'x'" in line for line in report.problems)


def test_table_without_header_and_without_audio_column(tmp_path: Path) -> None:
    _audio(tmp_path / "anna" / "0_anna_1.flac")
    (tmp_path / "transcripts.tsv").write_text("0_anna_1\tanna\tzero\n")
    options = TableOptions(("id", "speaker", "text"), "{speaker}/{id}.flac")
    _write(tmp_path / "out", list_table(tmp_path / "transcripts.tsv", options))
    assert load_batch(load_cuts(tmp_path / "out", "all"), None).texts == ("zero",)


def test_unfit_tables(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.tsv", "path\tnote\nx.wav\thello\n", "line 2: no column for text; expected one of text, .*found path, note"),
        ("a.jsonl", "{]\n", "a.jsonl: "),
        ("a.jsonl", "[1]\n", "expected an object"),
        ("a.xml", "", "expected .tsv, .csv, .txt, .jsonl or .json, found .xml"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            list_table(tmp_path / name)
    with pytest.raises(ValueError, match="no such file"):
        list_table(tmp_path / "b.tsv")
    (tmp_path / "c.tsv").write_text("id\ttext\nx\thello\n")
    with pytest.raises(ValueError, match="no column 'speaker'"):
        list_table(tmp_path / "c.tsv", TableOptions(audio="{speaker}.wav"))


def test_kaldi_directory(tmp_path: Path) -> None:
    one, two = _audio(tmp_path / "one.wav"), _audio(tmp_path / "two.flac", 2.0)
    data = tmp_path / "data"
    data.mkdir()
    ran = tmp_path / "ran"
    (data / "wav.scp").write_text(f"r1 {one}\nr2 flac -c -d -s {two} |\nr3 touch {ran} |\n")
    (data / "text").write_text("u1 HELLO YOU\nu2 WORLD\nu3 NEVER\nu4 GONE\n")
    (data / "utt2spk").write_text("u1 anna\nu2 bert\n")
    (data / "segments").write_text("u1 r1 0.0 0.5\nu2 r2 0.5 1.5\nu3 r3 0 1\n")
    report = _write(tmp_path / "out", list_kaldi(data))
    batch = load_batch(load_cuts(tmp_path / "out", "all"), None)
    assert batch.ids == ("u1", "u2")
    assert batch.texts == ("HELLO YOU", "WORLD")
    assert batch.audio_lengths.tolist() == [8000, 16000]
    assert not ran.exists()
    assert len(report.problems) == 2
    assert "r3: a command (touch), which is not run" in report.problems[0]
    assert "u4: no audio in wav.scp" in report.problems[1]
    (data / "segments").write_text("u1 r1\n")
    with pytest.raises(ValueError, match="expected recording, start and end"):
        list_kaldi(data)
    with pytest.raises(ValueError, match=r"wav\.scp: no such file"):
        list_kaldi(tmp_path)


def test_lhotse_recipe(tmp_path: Path) -> None:
    # yesno's own layout: eight words a file, 0 for LO (no) and 1 for KEN (yes).
    corpus = tmp_path / "waves_yesno"
    for i in range(59):
        soundfile.write(_audio(corpus / f"{'_'.join(f'{i:08b}')}.wav"), np.full(4000, 0.1), 8000)
    with pytest.raises(ValueError, match=r"AssertionError: yesno.py line .*== 60"):
        prepare_with_lhotse("yesno", corpus, tmp_path / "out")
    soundfile.write(corpus / "1_1_1_1_1_1_1_1.wav", np.full(4000, 0.1), 8000)
    report = prepare_with_lhotse("yesno", corpus, tmp_path / "out")
    assert {name: part.utterances for name, part in report.parts.items()} == {"train": 30, "test": 30}
    batch = load_batch(list(load_cuts(tmp_path / "out", "train"))[:2], None)
    assert batch.audio_lengths.tolist() == [8000, 8000]  # resampled to 16 kHz
    assert len(batch.texts[0].split()) == 8
    assert prepare_with_lhotse("yesno", corpus, tmp_path / "out").reused == tuple(report.parts)


def test_lhotse_recipe_errors(tmp_path: Path) -> None:
    assert {"librispeech", "aishell", "commonvoice", "tedlium"} <= set(recipe_names())
    with pytest.raises(ValueError, match=r"no recipe 'nope'; it has .*aishell"):
        prepare_with_lhotse("nope", tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="no argument speed; it has corpus_dir"):
        prepare_with_lhotse("yesno", tmp_path, tmp_path / "out", {"speed": 1})
    with pytest.raises(ValueError, match="missing argument corpus_dir"):
        prepare_with_lhotse("yesno", None, tmp_path / "out")
    with pytest.raises(ValueError, match="lhotse recipe yesno: ") as caught:
        prepare_with_lhotse("yesno", tmp_path / "nowhere", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_shar_reads_back_the_same(prepared: Path) -> None:
    folder = write_shar(prepared, "dev", shard_size=3)
    assert len(list(folder.glob("recording.*.tar"))) > 1
    cuts = load_cuts(prepared, "dev")
    for cut in CutSet.from_shar(in_dir=folder):
        np.testing.assert_allclose(cut.load_audio(), cuts[cut.id].load_audio(), atol=1e-4)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    write_shar(prepared, "dev", shard_size=3)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


class _Server(http.server.SimpleHTTPRequestHandler):
    """Serves files, byte ranges too; breaks off after ``limit`` bytes of each answer."""

    limit = 10**9
    ranges = True

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404, "Not Found")
            return
        data, first = path.read_bytes(), 0
        asked = self.headers.get("Range")
        if asked and self.ranges:
            first = int(asked.removeprefix("bytes=").split("-")[0])
            if first >= len(data):
                self.send_error(416, "Range Not Satisfiable")
                return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        self.wfile.write(data[first : first + self.limit])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "www").mkdir()
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Server, directory=str(tmp_path / "www")))
    thread = threading.Thread(target=http_server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http_server.server_port}"
    http_server.shutdown()
    http_server.server_close()


def _archive(tmp_path: Path) -> Archive:
    chapter = tmp_path / "source" / "LibriSpeech" / "dev-clean" / "84" / "7"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    soundfile.write(_audio(chapter / "84-7-0000.flac"), noise, 16000)
    (chapter / "84-7.trans.txt").write_text("84-7-0000 HELLO\n")
    path = tmp_path / "www" / "dev-clean.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "source" / "LibriSpeech", "LibriSpeech")
    return Archive(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("ranges", [True, False])
def test_download_continues_and_is_checked(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    archives = {"dev-clean": _archive(tmp_path)}
    root = tmp_path / "root"
    get = partial(download_librispeech, root, ["dev-clean"], base_url=server, archives=archives)
    monkeypatch.setattr(_Server, "ranges", ranges)
    monkeypatch.setattr(_Server, "limit", 9000)
    with pytest.raises(OSError, match="continues"):
        get()
    assert (root / "dev-clean.tar.gz.part").stat().st_size == 9000
    monkeypatch.setattr(_Server, "limit", 10**9)
    seen: list[tuple[int, int]] = []
    get(progress=lambda part: lambda done, total: seen.append((done, total)))
    assert seen[-1] == (archives["dev-clean"].size_bytes,) * 2
    assert (root / "LibriSpeech" / "dev-clean" / "84" / "7" / "84-7-0000.flac").is_file()
    assert [path.name for path in root.iterdir()] == ["LibriSpeech"]
    (tmp_path / "www" / "dev-clean.tar.gz").unlink()
    get()  # already there: the server is not asked


def test_download_refuses_what_was_not_published(tmp_path: Path, server: str) -> None:
    real = _archive(tmp_path)
    archives = {"dev-clean": Archive(real.size_bytes, "0" * 64)}
    with pytest.raises(ValueError, match=r"expected SHA-256 0000.*removed"):
        download_librispeech(tmp_path / "root", base_url=server, archives=archives)
    assert not list((tmp_path / "root").iterdir())
    with pytest.raises(OSError, match="404"):
        download_librispeech(tmp_path / "root", base_url=server, archives={"other": real})
    with pytest.raises(OSError, match=r"GB needed for dev-clean"):
        download_librispeech(tmp_path / "root", base_url=server, archives={"dev-clean": Archive(10**18, "")})
    with pytest.raises(ValueError, match="part 'x' is not known; LibriSpeech has dev-clean"):
        download_librispeech(tmp_path / "root", ["x"])


def test_disk_need_counts_what_is_missing(tmp_path: Path) -> None:
    assert disk_need_bytes(tmp_path, ["dev-clean", "test-clean"]) == 337_000_000 + 346_000_000 + 346_000_000
    (tmp_path / "LibriSpeech" / "test-clean").mkdir(parents=True)
    assert disk_need_bytes(tmp_path, ["dev-clean", "test-clean"]) == 2 * 337_000_000
