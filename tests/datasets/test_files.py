"""Files are looked for in a fixed order, checked by sha256, and never taken on trust."""

import hashlib
import sys
from pathlib import Path

import pooch
import pytest

from alignjax.datasets import DataCorruptedError, DataUnavailableError
from alignjax.datasets.files import obtain

CONTENT = b"some data"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
URLS = ("https://first.invalid/", "https://second.invalid/")


def get():
    return obtain("file.gz", SHA256, folder="set", base_urls=URLS)


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNJAX_DATA_DIR", str(tmp_path / "data"))
    folder = tmp_path / "data" / "set"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def no_data_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("ALIGNJAX_DATA_DIR", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)


class Network:
    """Stands in for pooch's downloader: answers by address, and keeps a list of the requests."""

    def __init__(self, answers):
        self.answers = answers
        self.requests = []

    def __call__(self, timeout):
        assert max(timeout) <= 30, "an offline machine must find out quickly"
        return self._download

    def _download(self, url, output_file, pooch):
        self.requests.append(url)
        answer = self.answers.get(url)
        if answer is None:
            raise ConnectionError("the network is down")
        Path(output_file).write_bytes(answer)


@pytest.fixture
def network(monkeypatch):
    def install(**answers):
        stand_in = Network({URLS[i] + "file.gz": answers.get(k) for i, k in enumerate(("a", "b"))})
        monkeypatch.setattr(pooch, "HTTPDownloader", stand_in)
        return stand_in

    return install


def test_the_data_folder_comes_first_and_no_request_is_made(data_folder, network):
    (data_folder / "file.gz").write_bytes(CONTENT)
    stand_in = network(a=CONTENT)
    assert get() == (CONTENT, str(data_folder / "file.gz"))
    assert stand_in.requests == []


def test_another_file_in_the_data_folder_is_refused_by_name_and_both_checksums(data_folder):
    (data_folder / "file.gz").write_bytes(CONTENT[:-1])
    with pytest.raises(DataCorruptedError) as error:
        get()
    assert str(data_folder / "file.gz") in str(error.value)
    assert SHA256 in str(error.value)
    assert hashlib.sha256(CONTENT[:-1]).hexdigest() in str(error.value)


def test_a_fetched_file_is_kept(no_data_folder, network):
    stand_in = network(a=CONTENT)
    assert get() == (CONTENT, URLS[0] + "file.gz")
    assert get()[0] == CONTENT
    assert stand_in.requests == [URLS[0] + "file.gz"]


def test_a_file_missing_from_the_data_folder_is_fetched(data_folder, no_data_folder, network):
    network(a=CONTENT)
    assert get() == (CONTENT, URLS[0] + "file.gz")


def test_the_second_address_is_asked_where_the_first_is_down(no_data_folder, network):
    network(b=CONTENT)
    assert get() == (CONTENT, URLS[1] + "file.gz")


def test_the_second_address_is_asked_where_the_first_sends_something_else(no_data_folder, network):
    network(a=b"a login page", b=CONTENT)
    assert get() == (CONTENT, URLS[1] + "file.gz")


def test_a_download_with_the_wrong_checksum_is_never_returned(no_data_folder, network):
    network(a=b"a login page", b=b"another one")
    with pytest.raises(DataUnavailableError, match="hash"):
        get()


def test_offline_says_everything_that_was_tried(no_data_folder, network):
    network()
    with pytest.raises(DataUnavailableError) as error:
        get()
    message = str(error.value)
    assert "ALIGNJAX_DATA_DIR is not set" in message
    assert all(url + "file.gz" in message for url in URLS)
    assert "the network is down" in message


def test_without_pooch_the_error_says_what_to_install(no_data_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataUnavailableError, match=r"pip install 'alignjax\[data\]'"):
        get()


def test_the_errors_are_os_errors():
    assert issubclass(DataUnavailableError, OSError)
    assert issubclass(DataCorruptedError, OSError)
