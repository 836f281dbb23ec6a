"""Records in image files: written by Pillow's save options, read from files of any tool.

| file | A1111's text | our JSON | made by a model |
| --- | --- | --- | --- |
| PNG | `parameters`: tEXt, iTXt where it is not Latin-1 | iTXt `t2i` | XMP (iTXt `XML:com.adobe.xmp`) |
| JPEG, WebP | EXIF UserComment, UTF-16 as A1111 writes it | XMP property `t2i:recipe` | XMP |

The XMP packet says `Iptc4xmpExt:DigitalSourceType = trainedAlgorithmicMedia`. ComfyUI's keys, `prompt` and `workflow`,
are never written: they hold another form.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from PIL import ExifTags, Image, PngImagePlugin

from t2i.metadata import a1111
from t2i.threads import ignore_warnings

MAX_RECORD = 1_000_000  # characters of one text that are read
RECIPE_NAMESPACE = "urn:t2i:xmp:1.0:"
IPTC_NAMESPACE = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
MADE_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
UNICODE = b"UNICODE\0"  # EXIF's mark of a UTF-16 comment


@dataclass(frozen=True)
class Texts:
    """The texts found in a file, not yet parsed; None: not there."""

    parameters: str | None  # A1111's text, ours or another tool's
    json: str | None  # ours
    generated: bool  # marked as made by a trained model
    problems: tuple[str, ...] = ()  # texts that are there and could not be read


def embed(format: str, parameters: str | None = None, json: str | None = None) -> dict[str, Any]:
    """Return Pillow's keyword arguments that write a record into a file of the given Pillow format.

    json: must be ASCII.  Without texts, the file says only that a model made it.
    """
    if format == "PNG":
        info = PngImagePlugin.PngInfo()
        if parameters:
            info.add_text("parameters", parameters)  # tEXt, or iTXt by itself where the text is not Latin-1
        if json:
            info.add_itxt("t2i", json)
        info.add_itxt("XML:com.adobe.xmp", xmp_packet().decode())
        return {"pnginfo": info}
    options: dict[str, Any] = {"xmp": xmp_packet(json)}
    if parameters:
        options["exif"] = _exif(UNICODE + parameters.encode("utf-16-be"))
    return options


def extract(image: Image.Image) -> Texts:
    """Extract the texts of an opened image.  Never fails: damaged or oversized texts are listed as problems."""
    problems: list[str] = []
    if image.format == "PNG" and not {"parameters", "t2i", "xmp"} & image.info.keys():
        try:
            image.load()  # some tools write text after the pixels
        except Exception as e:  # Pillow's decoders raise nearly anything on a damaged file
            problems.append(f"the pixels are damaged: {str(e)[:200]}")
    generated, ours = _read_xmp(image.info.get("xmp"), problems)
    ours = _bounded(image.info.get("t2i"), "t2i", problems) or ours
    parameters = _bounded(image.info.get("parameters"), "parameters", problems) or _read_comment(image, problems)
    return Texts(parameters, ours, generated, tuple(problems))


def xmp_packet(json: str | None = None) -> bytes:
    """Build an XMP packet that says `made by a trained model`, with our JSON if one is given."""
    extra = f" xmlns:t2i={quoteattr(RECIPE_NAMESPACE)} t2i:recipe={quoteattr(json)}" if json else ""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
        f" xmlns:Iptc4xmpExt={quoteattr(IPTC_NAMESPACE)}"
        f" Iptc4xmpExt:DigitalSourceType={quoteattr(MADE_BY_A_MODEL)}{extra}/>"
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def _exif(comment: bytes) -> bytes:
    """Build an EXIF block that holds nothing but a UserComment of more than 4 bytes.

    By hand, since Pillow would mark it as numbers (type 1); A1111's reader wants type 7, undefined bytes.
    """
    short_list = struct.Struct(">HHHIII")  # a list of one entry (tag, type, count, value or offset), and no next list
    first = short_list.pack(1, ExifTags.IFD.Exif, 4, 1, 8 + short_list.size, 0)
    second = short_list.pack(1, ExifTags.Base.UserComment, 7, len(comment), 8 + 2 * short_list.size, 0)
    return b"Exif\0\0MM\0*" + struct.pack(">I", 8) + first + second + comment


def _read_xmp(packet: object, problems: list[str]) -> tuple[bool, str | None]:
    """Return (marked as made by a model, our JSON) of an XMP packet."""
    if not isinstance(packet, str | bytes) or not packet:
        return False, None
    raw = packet.encode("utf-8", "replace") if isinstance(packet, str) else packet
    # XMP needs no document type; without one there are no entities, and so no entity bombs.
    if len(raw) > 2 * MAX_RECORD or b"<!DOCTYPE" in raw or b"\0" in raw.rstrip(b"\0"):
        problems.append(f"XMP of {len(raw):,} bytes was not read: too large, or unsafe")
        return False, None
    found: dict[str, str] = {}
    try:
        for element in ElementTree.fromstring(raw.rstrip(b"\0")).iter():
            found |= element.attrib | {element.tag: element.text or ""}
    except (ElementTree.ParseError, ValueError, LookupError) as e:
        problems.append(f"the XMP is not valid XML: {str(e)[:200]}")
    source = found.get(f"{{{IPTC_NAMESPACE}}}DigitalSourceType", "")
    return source.strip() == MADE_BY_A_MODEL, found.get(f"{{{RECIPE_NAMESPACE}}}recipe")


def _read_comment(image: Image.Image, problems: list[str]) -> str | None:
    """Return A1111's text from EXIF UserComment; None for another comment, such as cameras write."""
    try:
        with ignore_warnings():
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except Exception as e:  # EXIF is read by hand-written code over hostile offsets
        problems.append(f"the EXIF is damaged: {str(e)[:200]}")
        return None
    if isinstance(comment, bytes) and comment.startswith(UNICODE):
        body = comment[len(UNICODE) :]
        # The byte order is not marked. A1111 writes the high byte first, and it is 0 for most characters.
        swapped = body[1::2].count(0) > body[::2].count(0)
        comment = body.decode("utf-16-le" if swapped else "utf-16-be", "replace")
    elif isinstance(comment, bytes):
        comment = comment.removeprefix(b"ASCII\0\0\0").decode("utf-8", "replace")
    text = _bounded(comment, "EXIF UserComment", problems)
    return text if text and len(a1111.parse(text)) > 2 else None


def _bounded(text: object, name: str, problems: list[str]) -> str | None:
    if not isinstance(text, str) or not text:
        return None
    if len(text) > MAX_RECORD:
        problems.append(f"{name} holds {len(text):,} characters, more than a record has; not read")
        return None
    return str(text)  # Pillow's iTXt is a subclass with a language
