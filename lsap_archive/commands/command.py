"""`lsap-archive`: turns words into one call. Results go to stdout, messages to stderr; no torch, no cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from lsap_archive.commands.columns import SCHEMAS, as_markdown
from lsap_archive.commands.exported import add_words, export_asked
from lsap_archive.commands.nearest import add_index_options, add_nearest_options, find_nearest, make_index
from lsap_archive.commands.shown import print_json, print_table, visible
from lsap_archive.errors import (
    ArchiveError,
    ArchiveKeyError,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    QueryError,
    StoreRefusedError,
)
from lsap_archive.explorer.door import explore_archive
from lsap_archive.format.columns import columns_table
from lsap_archive.reading.opening import open_archive
from lsap_archive.reading.queries import TABLES
from lsap_archive.stores.credentials import Secrets
from lsap_archive.upkeep.verify import verify_archive

DONE, FAILED, ASKED_WRONGLY = 0, 1, 2
_WRONG_REQUESTS = (ArchiveKeyError, ArchiveMismatchError, ArchiveNotFoundError, QueryError, StoreRefusedError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0 when it is done, 1 when it failed, 2 when it was asked wrongly.

    Args:
        arguments: its words; None for those of this process.

    Raises:
        SystemExit: the words are none that it understands, or help was asked for.
    """
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.command(parsed)
        sys.stdout.flush()
    except (ArchiveError, OSError) as error:
        print("lsap-archive: " + visible(Secrets().hide(str(error))), file=sys.stderr)
        return ASKED_WRONGLY if isinstance(error, _WRONG_REQUESTS) else FAILED
    except KeyboardInterrupt:
        print("lsap-archive: interrupted", file=sys.stderr)
        return FAILED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lsap-archive", description="Archives of inversions: read, check, export.")
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb_for(name: str, does: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")

    describe = verb_for("describe", "what an archive holds: methods, edits, counts, sizes")
    verify = verb_for("verify", "check every object of an archive; exit code 1 where one is missing or damaged")
    sql = verb_for("sql", f"answer a query of DuckDB over the tables {', '.join(TABLES)}")
    nearest = verb_for("nearest", "find the images whose codes are nearest to those of others")
    index = verb_for("index", "make the index that `nearest --approximate` asks, and measure its recall")
    explore = verb_for("explore", "show an archive as a web page of this machine, until Ctrl-C")
    rows = verb_for("export", "write rows as Parquet or CSV, or codes as datasets, Lance or WebDataset")
    commands = {
        describe: _describe,
        verify: _verify,
        sql: _sql,
        nearest: find_nearest,
        index: make_index,
        rows: _export,
    }
    for verb, command in {**commands, explore: _explore}.items():
        verb.add_argument("url", help="the archive: a folder, s3://bucket/prefix, gs://, az://")
        verb.set_defaults(command=command)
    for verb in commands:
        verb.add_argument("--json", action="store_true", help="print the result as JSON")

    sql.add_argument(
        "query", help="such as \"select method, avg(sncd) from latest where status = 'ok' group by method\""
    )
    add_nearest_options(nearest)
    add_index_options(index)
    explore.add_argument(
        "--port", type=int, default=8765, metavar="N", help="to listen on; 0 for any that is free (default 8765)"
    )
    explore.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="to listen on; one that other machines reach wants --token (default 127.0.0.1)",
    )
    explore.add_argument(
        "--token", help='what readers have to know, at least 16 characters, or "auto", which makes one'
    )
    add_words(rows, TABLES)

    columns = verb_for("columns", "what the columns of the tables hold, in which units")
    columns.add_argument("table", nargs="?", choices=list(SCHEMAS), help="of one table alone")
    shape = columns.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print them as JSON")
    shape.add_argument("--markdown", action="store_true", help="as a page of the documentation")
    columns.set_defaults(command=_columns)
    return parser


def _describe(parsed: argparse.Namespace) -> int:
    found = open_archive(parsed.url).describe()
    if parsed.json:
        print_json(found)
        return DONE
    generator, geometry = found["generator"], found["geometry"]
    print(visible(f"{found['url']}: {found['num_runs']} runs, {found['num_rows']} rows, {found['num_bytes']} bytes"))
    print(visible(f"codes [{geometry['num_ws']}, {geometry['w_dim']}] of generator {generator['name']}"))
    for kind in ("methods", "edits"):
        if named := found[kind]:
            print()
            table = [{kind: name, **about} for name, about in named.items()]
            print_table(list(dict.fromkeys(column for row in table for column in row)), _joined(table))
    if numbers := found["set_numbers"]:
        print()
        print_table(list(numbers[0]), numbers)
    return DONE


def _joined(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in row.items()}
        for row in table
    ]


def _verify(parsed: argparse.Namespace) -> int:
    report = verify_archive(parsed.url)
    if parsed.json:
        print_json(report.to_dict())
    else:
        counts = {name: value for name, value in report.counts.items() if value}
        print(visible(f"{report.url}: {', '.join(f'{value} {name}' for name, value in counts.items())}"))
        for line in [*report.information, *map(str, report.problems)]:
            print(visible(line))
        print(f"{len(report.problems) or 'no'} problem{'' if len(report.problems) == 1 else 's'}")
    return FAILED if report.problems else DONE


def _sql(parsed: argparse.Namespace) -> int:
    answer = open_archive(parsed.url).sql(parsed.query)
    if parsed.json:
        print_json(answer.to_pylist())
    else:
        print_table(answer.column_names, answer.to_pylist())
    return DONE


def _explore(parsed: argparse.Namespace) -> int:
    archive = open_archive(parsed.url)
    try:
        explore_archive(archive, host=parsed.host, port=parsed.port, token=parsed.token, announce=_announce)
    except KeyboardInterrupt:  # which is how it ends well
        print("lsap-archive: the page is closed", file=sys.stderr)
    return DONE


def _announce(address: str) -> None:
    print(f"{address}\nCtrl-C ends it", flush=True)


def _export(parsed: argparse.Namespace) -> int:
    written = export_asked(parsed)
    if parsed.json:
        print_json({"file": parsed.out, "rows": written})
    else:
        print(visible(f"{parsed.out}: {written} rows"))
    return DONE


def _columns(parsed: argparse.Namespace) -> int:
    if parsed.markdown:
        print(as_markdown())
        return DONE
    tables = {name: columns_table(SCHEMAS[name]) for name in ([parsed.table] if parsed.table else SCHEMAS)}
    if parsed.json:
        print_json(tables)
        return DONE
    for name, rows in tables.items():
        print(f"{name}:")
        print_table(list(rows[0]), rows)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
