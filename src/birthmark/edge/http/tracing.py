"""Traces of requests for an OpenTelemetry collector (SPEC K4): an extra; none unless the settings name one.

A request is a span, and so is each stretch of it in which the service thinks, waits for the commit train, or
uses the key store.  A client's ``traceparent`` makes it the parent, and whether it keeps the trace is
followed.  Spans carry route, status and durations: no device, no client, no text of an error, no body.

They are sent from a thread of the exporter's, in batches.  A collector that is away costs spans, never
a request: what does not fit the queue is dropped, and said in the service's log.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Self

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from birthmark import __version__
from birthmark.edge.http.tracecontext import TraceParent
from birthmark.settings import RealmSettings
from birthmark.settings import Tracing as TracingSettings

__all__ = ["Tracing"]

_EXPORT_SECONDS = 5.0
_CLOSE_MILLISECONDS = 3000


class Tracing:
    """Makes the spans of one process; to be opened after the fork, because the exporter is a thread."""

    def __init__(self, provider: TracerProvider) -> None:
        """Make spans of this provider; see ``open``."""
        self._provider = provider
        self._tracer = provider.get_tracer("birthmark", __version__)

    @classmethod
    def open(cls, table: TracingSettings, realm: RealmSettings) -> Self:
        """Begin to send to the collector that the settings name."""
        resource = Resource.create(
            {
                "service.name": "birthmark",
                "service.version": __version__,
                "service.namespace": realm.name,
                "deployment.environment.name": str(realm.environment),
            }
        )
        provider = TracerProvider(
            resource=resource,
            sampler=ParentBased(TraceIdRatioBased(table.ratio)),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=table.endpoint, timeout=_EXPORT_SECONDS)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    @contextmanager
    def request(self, parent: TraceParent | None) -> Iterator[Callable[[str, int], None]]:
        """Surround a request; what is returned is called at its end, with its route and status."""
        within = context.Context() if parent is None else trace.set_span_in_context(_remote(parent))
        with self._tracer.start_as_current_span(
            "request", within, SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span:

            def tell(route: str, status: int) -> None:
                span.update_name(route)
                span.set_attributes({"http.route": route, "http.response.status_code": status})
                if status == 0 or status >= 500:
                    span.set_status(Status(StatusCode.ERROR))

            yield tell

    def span(self, name: str) -> AbstractContextManager[object]:
        """Surround a stretch of work; nothing outside a request, such as the train's own signature."""
        if not trace.get_current_span().get_span_context().is_valid:
            return _outside()
        return self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False)

    def close(self) -> None:
        """Send what waits, if that is done soon."""
        self._provider.force_flush(_CLOSE_MILLISECONDS)
        self._provider.shutdown()


@contextmanager
def _outside() -> Iterator[None]:
    yield None


def _remote(parent: TraceParent) -> NonRecordingSpan:
    return NonRecordingSpan(
        SpanContext(
            trace_id=int(parent.trace_id, 16),
            span_id=int(parent.span_id, 16),
            is_remote=True,
            trace_flags=TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT),
        )
    )
