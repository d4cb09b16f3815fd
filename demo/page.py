"""The page: tabs, buttons and sliders, and what each of them runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from castvision.errors import FAILURES, one_line

from . import clusters, comparison, features, segments
from .drawing import line
from .memory import give_back
from .sessions import Stopped
from .studio import take_example, take_upload

if TYPE_CHECKING:
    from collections.abc import Callable

    from .sessions import Session
    from .studio import Studio

_PROGRESS = gr.Progress()
_HEAVY = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "undocumented"}
_LIGHT: dict[str, Any] = {"queue": False, "api_visibility": "undocumented", "show_progress": "hidden"}

CSS = """
.gradio-container { max-width: 1180px !important; }
.gradio-container main, .gradio-container > .main { padding: 12px !important; }
#status { position: sticky; top: 0; z-index: 20; background: var(--body-background-fill); padding: 2px 0; }
.told { margin: 4px 0 !important; overflow-wrap: anywhere; }
.error { color: #b91c1c !important; font-weight: 600; }
.dark .error { color: #fca5a5 !important; }
.wide { overflow-x: auto; }
.wide table { border-collapse: collapse; width: 100%; font-size: 14px; border: 0 !important; }
.wide caption { text-align: left; padding: 4px 0; overflow-wrap: anywhere; }
.wide th, .wide td { text-align: left; padding: 3px 8px; border: 0 !important; }
.wide tr { border: 0 !important; border-bottom: 1px solid #8884 !important; }
.swatch { display: inline-block; width: 16px; height: 16px; border: 1px solid #888; vertical-align: middle; }
:focus-visible { outline: 3px solid #2563eb !important; outline-offset: 2px; }
@media (max-width: 480px) {
  .gradio-container main, .gradio-container > .main { padding: 6px !important; }
  .wide table { font-size: 13px; }
}
"""


def build(studio: Studio) -> gr.Blocks:
    """The page of a studio, whose every visitor has a session of their own."""
    page = gr.Blocks(title="castvision", analytics_enabled=False)
    with page:
        gr.Markdown(f"# castvision\nNear and far attention on your photograph. Model: {_plain(studio.told)}")
        with gr.Row():
            with gr.Column():
                upload = gr.File(label="Your photograph", file_count="single", height=130, elem_id="upload")
                names = list(studio.examples)
                example = gr.Dropdown(names, value=None, label="or an example", elem_id="example")
            with gr.Column():
                photograph = gr.Image(**_picture("The photograph", "photograph"), height=250, visible=False)
        status = gr.HTML(line("Upload a photograph or pick an example."), elem_id="status")
        with gr.Tabs():
            cleared = [
                *_add_features(studio, status),
                *_add_clusters(studio, status),
                *_add_segments(studio, status),
                *_add_big_image(studio, status),
                *_add_comparison(studio, status),
            ]

        def on_upload(path: str | None, request: gr.Request) -> Any:
            return _chosen(studio, request, cleared, lambda session: path and take_upload(studio, session, path))

        def on_example(name: str | None, request: gr.Request) -> Any:
            return _chosen(studio, request, cleared, lambda session: name and take_example(studio, session, name))

        outputs = [status, photograph, *cleared]
        upload.upload(on_upload, upload, outputs, api_name="upload", **_HEAVY)
        example.input(on_example, example, outputs, api_name="example", **_HEAVY)

        def on_leave(request: gr.Request) -> None:
            studio.store.drop(str(request.session_hash))

        page.unload(on_leave)
    return page


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>()#+-!|" else letter for letter in text)


def _chosen(studio: Studio, request: gr.Request, cleared: list[Any], take: Callable[[Session], Any]) -> Any:
    """Values of the status, the photograph and all pictures of the last one, which go."""
    kept = [gr.skip()] * (1 + len(cleared))

    def work(session: Session) -> Any:
        photograph = take(session)
        if not photograph:
            return gr.skip(), *kept
        told = line(f"{photograph.name}: {photograph.size[0]} × {photograph.size[1]} pixels")
        return told, gr.Image(value=photograph.picture, visible=True), *[None] * len(cleared)

    return _answered(studio, request, work, kept)


def _answered(studio: Studio, request: gr.Request, work: Callable[[Session], Any], kept: list[Any]) -> Any:
    """What the work gives; where it fails, its message as the status, and all else as it was."""
    try:
        return work(studio.store.get(str(request.session_hash)))
    except Stopped as stop:
        return line(one_line(stop)), *kept
    except FAILURES as error:
        return line(one_line(error, 400), is_error=True), *kept
    finally:
        give_back()


def _picture(label: str, name: str) -> dict[str, Any]:
    return {
        "label": label, "elem_id": name, "interactive": False, "type": "numpy", "buttons": ["fullscreen"],
        "alt_text": label,
    }  # fmt: skip


def _side(studio: Studio, name: str, most: int = 146, start: int = 37) -> gr.Slider:
    patch = max(studio.model.patch)
    label = "longer side the model sees, in pixels"
    return gr.Slider(8 * patch, most * patch, value=start * patch, step=patch, label=label, elem_id=name)


def _point(name: str) -> tuple[gr.Slider, gr.Slider, gr.Button]:
    """A point without a mouse: two sliders and a button."""
    with gr.Accordion("A point without a mouse", open=False), gr.Row():
        across = gr.Slider(0, 1, value=0.5, step=0.01, label="across", elem_id=f"{name}_across", min_width=120)
        down = gr.Slider(0, 1, value=0.5, step=0.01, label="down", elem_id=f"{name}_down", min_width=120)
        button = gr.Button("Show this point", elem_id=f"{name}_point", min_width=120)
    return across, down, button


def _clicked(event: gr.SelectData, picture: Any) -> tuple[float, float]:
    """How far down and across the click was, 0..1, in a picture that was shown."""
    across, down = event.index
    height, width = picture.shape[:2]
    return min((down + 0.5) / height, 1.0), min((across + 0.5) / width, 1.0)


def _add_features(studio: Studio, status: gr.HTML) -> list[Any]:
    with gr.Tab("Features", id="features"):
        gr.Markdown(
            "The first three principal components as colours. **Click a point** to see how similar all is to it."
        )
        side = _side(studio, "features_side")
        show = gr.Button("Show features", variant="primary", elem_id="features_show")
        with gr.Row():
            colours = gr.Image(**_picture("Features as colours", "features_colours"))
            heat = gr.Image(**_picture("Similarity to the point", "features_heat"))
        across, down, button = _point("features")

    def on_show(pixels: float, request: gr.Request) -> Any:
        def work(session: Session) -> Any:
            picture, told = features.colours(studio, session, int(pixels))
            return line(told), picture, None

        return _answered(studio, request, work, [gr.skip()] * 2)

    def on_point(x: float, y: float, request: gr.Request) -> Any:
        def work(session: Session) -> Any:
            picture, told = features.heat(studio, session, (y, x))
            return line(told), picture

        return _answered(studio, request, work, [gr.skip()])

    def on_click(shown: Any, request: gr.Request, event: gr.SelectData) -> Any:
        y, x = _clicked(event, shown)
        return on_point(x, y, request)

    show.click(on_show, side, [status, colours, heat], api_name="features", **_HEAVY)
    button.click(on_point, [across, down], [status, heat], api_name="similar", **_HEAVY)
    colours.select(on_click, colours, [status, heat], **_HEAVY)
    return [colours, heat]


def _add_clusters(studio: Studio, status: gr.HTML) -> list[Any]:
    number = len(getattr(studio.model.predictor.model, "blocks", ())) or 1
    with gr.Tab("Clusters", id="clusters"):
        gr.Markdown(
            "Content clusters in colours, windows in white lines. **Click a point**: its window and the "
            "clusters it attends to light up by the weight they get."
        )
        side = _side(studio, "clusters_side", most=73)
        show = gr.Button("Show clusters", variant="primary", elem_id="clusters_show")
        layer = gr.Slider(1, number, value=min(number, 6), step=1, label="layer", elem_id="clusters_layer")
        with gr.Row():
            overlay = gr.Image(**_picture("Clusters of the layer", "clusters_overlay"))
            lit = gr.Image(**_picture("What the point attends to", "clusters_lit"))
        weights = gr.HTML(elem_id="clusters_weights")
        across, down, button = _point("clusters")

    def on_show(pixels: float, chosen: float, request: gr.Request) -> Any:
        def work(session: Session) -> Any:
            told = clusters.find(studio, session, int(pixels))
            picture, of_layer = clusters.overlay(session, int(chosen))
            return line(f"{told}; {of_layer}"), picture, None, None

        return _answered(studio, request, work, [gr.skip()] * 3)

    def on_layer(chosen: float, request: gr.Request) -> Any:
        def work(session: Session) -> Any:
            if not session.maps:  # moved before there is anything to show
                return gr.skip(), gr.skip(), gr.skip(), gr.skip()
            picture, told = clusters.overlay(session, int(chosen))
            if session.point is None:
                return line(told), picture, None, None
            return line(told), picture, *clusters.weights(studio, session, int(chosen), session.point)

        return _answered(studio, request, work, [gr.skip()] * 3)

    def on_point(x: float, y: float, chosen: float, request: gr.Request) -> Any:
        def work(session: Session) -> Any:
            picture, listed = clusters.weights(studio, session, int(chosen), (y, x))
            return (
                line("The point's window in a white frame, clusters brighter the more weight they get."),
                picture,
                listed,
            )

        return _answered(studio, request, work, [gr.skip()] * 2)

    def on_click(chosen: float, shown: Any, request: gr.Request, event: gr.SelectData) -> Any:
        y, x = _clicked(event, shown)
        return on_point(x, y, chosen, request)

    show.click(on_show, [side, layer], [status, overlay, lit, weights], api_name="clusters", **_HEAVY)
    layer.change(
        on_layer, layer, [status, overlay, lit, weights], api_name="layer", trigger_mode="always_last", **_HEAVY
    )
    button.click(on_point, [across, down, layer], [status, lit, weights], api_name="weights", **_HEAVY)
    overlay.select(on_click, [layer, overlay], [status, lit, weights], **_HEAVY)
    return [overlay, lit, weights]


def _choose_segmenter(studio: Studio, name: str, extra: str | None = None) -> gr.Dropdown:
    names = [*([] if extra is None else [extra]), *studio.segmenters]
    value = names[0] if names else None
    return gr.Dropdown(names, value=value, label="segmenter" if extra is None else "what is made", elem_id=name)


def _stop_button(studio: Studio, name: str) -> None:
    def on_stop(request: gr.Request) -> None:
        studio.store.get(str(request.session_hash)).stop.set()

    gr.Button("Stop", variant="stop", elem_id=name).click(on_stop, **_LIGHT)


def _reporter(session: Session, progress: gr.Progress) -> Callable[[int, int], None]:
    session.stop.clear()

    def report(done: int, total: int) -> None:
        session.check_stopped(done, total)
        progress((done, total), desc="tiles", unit="tiles")

    return report


def _add_segments(studio: Studio, status: gr.HTML) -> list[Any]:
    with gr.Tab("Segment", id="segment"):
        if not studio.segmenters:
            gr.Markdown("No segmenter was given: start the demo with `--segmenter CHECKPOINT`.")
        chosen = _choose_segmenter(studio, "segment_model")
        opacity = gr.Slider(0, 1, value=0.5, step=0.05, label="opacity of the classes", elem_id="segment_opacity")
        with gr.Row():
            show = gr.Button("Segment", variant="primary", elem_id="segment_show")
            _stop_button(studio, "segment_stop")
        slider = gr.ImageSlider(
            label="The photograph and its classes", elem_id="segment_slider", interactive=False, buttons=["fullscreen"]
        )
        areas = gr.HTML(elem_id="segment_areas")
        labels = gr.State(None)

    def on_show(name: str | None, share: float, request: gr.Request, progress: gr.Progress = _PROGRESS) -> Any:
        def work(session: Session) -> Any:
            found, told, listed = segments.segment(studio, session, name, _reporter(session, progress))
            return line(told), segments.tinted(studio, session, name, found, share), listed, (name, found)

        return _answered(studio, request, work, [gr.skip()] * 3)

    def on_opacity(share: float, kept: Any, request: gr.Request) -> Any:
        def work(session: Session) -> Any:
            if kept is None:  # moved before there is anything to show
                return gr.skip(), gr.skip()
            name, labels = kept
            return gr.skip(), segments.tinted(studio, session, name, labels, share)

        return _answered(studio, request, work, [gr.skip()])

    show.click(on_show, [chosen, opacity], [status, slider, areas, labels], api_name="segment", **_HEAVY)
    opacity.release(on_opacity, [opacity, labels], [status, slider], **_HEAVY)
    return [slider, areas, labels]


def _add_big_image(studio: Studio, status: gr.HTML) -> list[Any]:
    patch = max(studio.model.patch)
    with gr.Tab("Big image", id="big"):
        gr.Markdown("The whole image at its own pixels, tile by tile, read from the file as it is needed.")
        chosen = _choose_segmenter(studio, "big_model", segments.FEATURES)
        tile = gr.Slider(16 * patch, 73 * patch, value=37 * patch, step=patch, label="tile, in pixels (of features)",
                         elem_id="big_tile")  # fmt: skip
        with gr.Row():
            show = gr.Button("Start", variant="primary", elem_id="big_show")
            _stop_button(studio, "big_stop")
        picture = gr.Image(**_picture("The whole image", "big_picture"))
        areas = gr.HTML(elem_id="big_areas")

    def on_show(name: str | None, side: float, request: gr.Request, progress: gr.Progress = _PROGRESS) -> Any:
        def work(session: Session) -> Any:
            report = _reporter(session, progress)
            if name == segments.FEATURES:
                drawn, told = segments.features_by_tiles(studio, session, int(side), report)
                return line(told), drawn, None
            found, told, listed = segments.segment(studio, session, name, report, is_big=True)
            return line(told), segments.tinted(studio, session, name, found, 0.5)[1], listed

        return _answered(studio, request, work, [gr.skip()] * 2)

    show.click(on_show, [chosen, tile], [status, picture, areas], api_name="big", **_HEAVY)
    return [picture, areas]


def _add_comparison(studio: Studio, status: gr.HTML) -> list[Any]:
    with gr.Tab("Compare", id="compare"):
        gr.Markdown("The same weights with near and far and with full attention. Equal colours are equal features.")
        side = _side(studio, "compare_side", most=146)
        show = gr.Button("Compare", variant="primary", elem_id="compare_show")
        with gr.Row():
            near_far = gr.Image(**_picture("Near and far", "compare_near_far"))
            full = gr.Image(**_picture("Full attention", "compare_full"))
        listed = gr.HTML(elem_id="compare_table")

    def on_show(pixels: float, request: gr.Request) -> Any:
        def work(session: Session) -> Any:
            ours, theirs, told = comparison.compare(studio, session, int(pixels))
            return line("Compared."), ours, theirs, told

        return _answered(studio, request, work, [gr.skip()] * 3)

    show.click(on_show, side, [status, near_far, full, listed], api_name="compare", **_HEAVY)
    return [near_far, full, listed]
