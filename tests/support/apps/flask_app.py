"""A Flask application: forms, uploads, streaming, files, errors and a held request, in one file."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from flask import Flask, Response, abort, request, send_file

from support.stage import hold

app = Flask(__name__)


@app.route("/", methods=["GET", "POST"])
def root():
    return {"pid": os.getpid(), "method": request.method, "query": request.args, "remote": request.remote_addr}


@app.post("/form")
def form():
    return request.form.to_dict()


@app.post("/upload")
def upload():
    sent = request.files["file"]
    return {"name": sent.filename, "digest": hashlib.sha256(sent.read()).hexdigest()}


@app.post("/echo")
def echo():
    return request.get_data()


@app.get("/stream")
def stream():
    return Response((f"{number}\n" for number in range(100)), mimetype="text/plain")


@app.get("/file")
def file():
    return send_file(Path(__file__))


@app.get("/url")
def url():
    return request.url


@app.get("/session")
def session():
    return request.cookies


@app.get("/thread")
def thread():
    return {"main": threading.current_thread() is threading.main_thread()}


@app.get("/stay")
def stay():
    hold("running")
    return {"pid": os.getpid()}


@app.get("/teapot")
def teapot():
    abort(418)


@app.get("/broken")
def broken():
    raise RuntimeError("broken on purpose")


def create():
    return app
