"""`ltxkit serve`: clips over HTTP, for programs that speak OpenAI's video interface or ComfyUI's, and for a browser."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..ltx_core.errors import ConfigError, UnsupportedError
from ..ltx_core.values import shown
from . import arguments, places
from .command import DONE, Command
from .console import Console

if TYPE_CHECKING:
    from ..service.catalog import Catalog
    from ..service.cluster import Cluster

TOKEN = "LTXKIT_SERVE_TOKEN"
PORT = 8190


def offered_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name models and LoRAs."""
    parser.add_argument(
        "--model", action="append", default=[], metavar="[NAME=]FILE", help="a model to offer; may be repeated"
    )
    parser.add_argument("--text-encoder", metavar="FILE", help="T5, for all of the models")
    parser.add_argument("--vae", metavar="FILE", help="another VAE, for all of the models")
    parser.add_argument("--upscaler", metavar="FILE", help="a latent upscaler, for two passes, for all of the models")
    parser.add_argument("--version", metavar="NAME", help="the released version, if the files do not state it")
    parser.add_argument("--quantization", metavar="FORM", help="of the transformers, as for `ltxkit generate`")
    parser.add_argument("--text-quantization", metavar="FORM", help="of the text encoder")
    parser.add_argument(
        "--lora", action="append", default=[], metavar="[NAME=]FILE", help="a LoRA to offer; may be repeated"
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    offered_arguments(parser)
    parser.add_argument(
        "--models", type=Path, default=Path("models"), metavar="DIR", help="ComfyUI's models folder, for graphs"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("service"), help="where the queue and the clips are (default: %(default)s)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument(
        "--port", type=arguments.whole(0, 65535), default=PORT, help="default: %(default)s; 0: a free one"
    )
    parser.add_argument(
        "--token", metavar="TEXT", help=f"what clients must send (default: ${TOKEN}); required for other machines"
    )
    parser.add_argument(
        "--device", action="append", metavar="NAME", help="of a worker, such as cuda:1; repeated: a worker each"
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="make the clips with Ray Serve, on the cluster at this address (auto: the one that this machine belongs "
        "to); without an address: on this machine",
    )
    parser.add_argument(
        "--replicas",
        type=arguments.span,
        metavar="[LEAST-]MOST",
        help="with --ray: how many clips are made at a time (default: 1 to as many as the cluster has GPUs)",
    )
    parser.add_argument(
        "--keep",
        type=arguments.number(above=0),
        metavar="DAYS",
        help="how long finished clips stay (default: for ever)",
    )
    parser.add_argument(
        "--max-queue", type=arguments.whole(1), default=100, metavar="N", help="jobs that may wait (default: 100)"
    )
    parser.add_argument(
        "--max-pixels",
        type=arguments.whole(1),
        default=300_000_000,
        metavar="N",
        help="width x height x frames (default: %(default)s)",
    )
    parser.add_argument(
        "--max-upload", type=arguments.whole(1), default=64, metavar="MB", help="of one request (default: %(default)s)"
    )


def _run(options: argparse.Namespace, console: Console) -> int:
    try:
        import starlette as _  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UnsupportedError(
            f"got an installation without {error.name}; expected the extra `serve`; pip install 'ltxkit[serve]'"
        ) from error
    from ..ltx_core.locks import locked_folder
    from ..service.app import application
    from ..service.folder import Folder
    from ..service.guard import is_loopback
    from ..service.requests import Limits
    from ..service.service import DAY, Service

    token = options.token if options.token is not None else os.environ.get(TOKEN)
    if not is_loopback(options.host) and not token:
        raise ConfigError(
            f"got --host {options.host} without a token; expected one where other machines can reach the server; set "
            f"${TOKEN}, or leave --host out"
        )
    catalog = offered(options)
    cluster = _cluster(options)
    check_offered(catalog, [] if cluster is not None and cluster.address is not None else options.device or [None])
    with locked_folder(options.folder, "server"):
        service = Service(
            Folder(options.folder.resolve()),
            catalog,
            tuple(options.device or [None]),
            Limits(options.max_queue, options.max_pixels, options.max_upload * 2**20),
            options.models.resolve(),
            None if options.keep is None else options.keep * DAY,
            token or None,
            ray=cluster,
        )
        listening = _listening(options.host, options.port)
        host, port = listening.getsockname()[:2]
        console.note(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}; Ctrl-C ends it")
        config = uvicorn.Config(
            application(service),
            host=options.host,
            port=options.port,
            log_level="warning",
            timeout_graceful_shutdown=5,
            server_header=False,
            use_colors=False,  # otherwise it asks stdout, which may be closed
        )
        server = uvicorn.Server(config)

        async def serve() -> None:
            await server.serve(sockets=[listening])

        asyncio.run(serve())
        return DONE


def _cluster(options: argparse.Namespace) -> Cluster | None:
    """The Ray cluster that the options name, if it can be used; None: they name none.

    Raises ConfigError, UnsupportedError: it cannot.
    """
    from ..service.cluster import Cluster

    if options.ray is None:
        if options.replicas is not None:
            raise ConfigError("got --replicas without --ray; expected both; for workers here, repeat --device")
        return None
    if len(options.device or []) > 1:
        raise ConfigError(
            f"got {len(options.device)} devices with --ray; expected at most one, which each replica has; say how many "
            "there are with --replicas"
        )
    least, most = options.replicas or (1, None)
    cluster = Cluster(options.ray or None, least, most)
    check = [
        sys.executable,
        "-m",
        f"{Cluster.__module__.rpartition('.')[0]}.replicas",
        "check",
    ]  # Ray stays out of here
    told = json.dumps({"ray": asdict(cluster)})
    ran = subprocess.run(check, input=told, stdout=subprocess.PIPE, text=True, check=False)
    if ran.returncode:
        raise UnsupportedError(f"got an installation in which Ray ends with status {ran.returncode}; mend it")
    error = json.loads(ran.stdout.strip().splitlines()[-1])
    if error is not None:
        name, message = error
        raise (ConfigError if name == ConfigError.__name__ else UnsupportedError)(message)
    return cluster


def _listening(host: str, port: int) -> socket.socket:
    """Raises ConfigError: the address is in use, or not of this machine."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"got the address {host}:{port}, where no server can listen ({error.strerror or error}); expected a free "
            "one; choose another --port"
        ) from error


def check_offered(catalog: Catalog, devices: Sequence[str | None]) -> None:
    """Refuse files and devices that cannot be used, before anything starts. Raises LTXKitError."""
    from ..ltx_core.placing.devices import chosen_device
    from ..ltx_core.weights.lora import load_lora
    from ..service.catalog import own_size

    for device in devices:
        chosen_device(device)
    for model in catalog.models.values():
        own_size(model)
    for path in catalog.loras.values():
        load_lora(path)


def offered(options: argparse.Namespace) -> Catalog:
    """The models and LoRAs that the options name. Raises as `Places.need`."""
    from ..ltx_core.weights.bundled import BUNDLED, find_model
    from ..service.catalog import Catalog, Model

    searched = places.Places()
    said = [_named(text) for text in options.model]
    if not said:
        path = searched.need(places.MODEL, None).path
        said = [(path.stem, str(path))]
    models: dict[str, Model] = {}
    for name, file in said:
        path = searched.need(places.MODEL, file).path
        encoder = options.text_encoder
        if str(path) != BUNDLED or encoder is not None:
            encoder = str(searched.need(places.TEXT_ENCODER, encoder, beside=path).path)
        vae = searched.find(places.VAE, options.vae) if options.vae else None
        upscaler = searched.find(places.UPSCALER, options.upscaler) if options.upscaler else None
        if name in models:
            raise ConfigError(f"got two models of the name {shown(name)}; expected one each; write --model NAME=FILE")
        models[name] = Model(
            name,
            str(path) if str(path) == BUNDLED else str(path.resolve()),
            encoder if encoder is None else str(Path(encoder).resolve()),
            None if vae is None else str(vae.path.resolve()),
            None if upscaler is None else str(upscaler.path.resolve()),
            options.version,
            options.quantization,
            options.text_quantization,
        )
    loras = [_named(text) for text in options.lora]
    names = [name for name, _ in loras]
    if len(set(names)) < len(names):
        raise ConfigError(f"got LoRAs with the names {', '.join(names)}; expected one each; write --lora NAME=FILE")
    return Catalog(models, {name: str(find_model(file, "loras").resolve()) for name, file in loras})


def _named(text: str) -> tuple[str, str]:
    """The name by which a file is offered, and the file: NAME=FILE, or the file's own name without its suffix."""
    name, equals, file = text.partition("=")
    if equals and name and file and not Path(text).exists():
        return name, file
    return Path(text).stem if Path(text).suffix in (".safetensors", ".gguf") else Path(text).name, text


COMMANDS = (
    Command(
        "serve",
        "Make clips for whoever asks over HTTP: OpenAI's video interface, ComfyUI's, and a page.",
        _arguments,
        _run,
        (
            "serve --model ltxkit-digits",
            "serve --model ltxv-2b-0.9.8-distilled.safetensors --text-encoder t5xxl_fp16.safetensors",
            "serve --host 0.0.0.0 --device cuda:0 --device cuda:1 --keep 7",
            "serve --model ltxv-13b-0.9.8-dev-fp8.safetensors --ray auto --replicas 0-8",
        ),
    ),
)
