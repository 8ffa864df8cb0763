"""Options that several commands share."""

from typing import Annotated

import typer

Url = Annotated[
    str | None,
    typer.Option("--url", help="Where Muster answers [MUSTER_URL, else http://127.0.0.1:$MUSTER_PORT, else :8700]."),
]
Key = Annotated[
    str | None, typer.Option("--key", help="The API key [MUSTER_API_KEY, else admin.key in the data directory].")
]
AsJson = Annotated[bool, typer.Option("--json", help="The JSON of the REST API, unchanged.")]
DataDirectory = Annotated[
    str | None, typer.Option("--data-dir", help="Where everything lies that lasts [MUSTER_DATA_DIR, else .muster].")
]
