"""Prometheus metrics, liveness and readiness on a port of their own. Labels never hold a patient, a code or a user."""

from __future__ import annotations

import threading
from collections import Counter as Counts
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from streams.steps import Outputs

CONTENT = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What a worker counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        rejected = "feed records that became dead letters"
        self._admitted = Counter("premonitor_events_admitted", "feed records that became facts", ["feed"], registry=self.registry)
        self._rejected = Counter("premonitor_events_rejected", rejected, ["feed", "reason"], registry=self.registry)
        self._scores = Counter("premonitor_scores_issued", "score records issued, repeats included", registry=self.registry)
        self._alerts = Counter("premonitor_alerts", "alert records issued, repeats included", registry=self.registry)
        self._rebuilt = Counter("premonitor_histories_rebuilt", "histories made anew from the log", registry=self.registry)
        self._intake = Gauge("premonitor_intake", "counters of the intakes", ["intake", "what"], registry=self.registry)
        self._lag = Gauge("premonitor_consumer_lag_records", "records not yet done", ["intake"], registry=self.registry)

    def admitted(self, counts: Counts[tuple[str, str]]) -> None:
        for (feed, what), n in counts.items():
            (self._admitted.labels(feed) if what == "fact" else self._rejected.labels(feed, what)).inc(n)

    def scored(self, outputs: Outputs) -> None:
        self._scores.inc(len(outputs.scores))
        self._alerts.inc(len(outputs.alerts))

    def rebuilt(self, n: int) -> None:
        self._rebuilt.inc(n)

    def intake(self, name: str, counts: Counts[str], lag: int) -> None:
        """Copy an intake's own counters."""
        self._lag.labels(name).set(lag)
        for what, n in counts.items():
            self._intake.labels(name, what).set(n)


class Health:
    """A small server: /livez is the loop's heartbeat, /readyz assignment plus a good last write, /metrics the metrics."""

    def __init__(self, metrics: Metrics, *, host: str, port: int, alive: Callable[[], bool], ready: Callable[[], bool]) -> None:
        answers: dict[str, Callable[[], bool]] = {"/livez": alive, "/readyz": ready}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, generate_latest(metrics.registry), CONTENT)
                elif self.path in answers:
                    good = answers[self.path]()
                    self._answer(200 if good else 503, b"ok\n" if good else b"no\n", "text/plain")
                else:
                    self._answer(404, b"/livez /readyz /metrics\n", "text/plain")

            def _answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Probes are not news."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
