"""`lsap-archive explore` as a process: it says where it is, answers, and ends by Ctrl-C in one line."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.error
import urllib.request

from lsap_archive import Archive


def test_it_says_where_it_is_answers_and_ends(shown_archive: Archive) -> None:
    command = [sys.executable, "-m", "lsap_archive.commands.command", "explore", shown_archive.url, "--port", "0"]
    with subprocess.Popen(
        [*command, "--token", "auto"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:") and "/?token=" in address
            assert process.stdout.readline() == "Ctrl-C ends it\n"
            opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            page = opener.open(address, timeout=30).read().decode()
            assert shown_archive.url in page and "token" not in page
            try:
                urllib.request.urlopen(address.partition("?")[0], timeout=30)
            except urllib.error.HTTPError as refused:
                with refused:
                    assert refused.code == 403
            else:
                raise AssertionError("it answered without the token")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "", "lsap-archive: the page is closed\n")
