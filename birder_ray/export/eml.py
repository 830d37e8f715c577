"""eml.xml of a Darwin Core Archive: EML 2.2.0 in GBIF's profile 1.3."""

import xml.etree.ElementTree as ET
from collections.abc import Mapping

from birder_ray.errors import printable
from birder_ray.export.metadata import LICENCES, Metadata

EML = "https://eml.ecoinformatics.org/eml-2.2.0"
PROFILE = "https://rs.gbif.org/schema/eml-gbif-profile/1.3/eml.xsd"
_XSI = "http://www.w3.org/2001/XMLSchema-instance"
_XML = "http://www.w3.org/XML/1998/namespace"


def eml(told: Metadata, identifier: str, published: str, how: str) -> bytes:
    """The document.

    Args:
        identifier, published: of the data set where `told` has none. how: the names were given to the photos.
    """
    ET.register_namespace("eml", EML)
    ET.register_namespace("xsi", _XSI)
    about = {"packageId": told.id or identifier, "system": "http://gbif.org", "scope": "system"}
    about |= {f"{{{_XML}}}lang": told.language, f"{{{_XSI}}}schemaLocation": f"{EML} {PROFILE}"}
    root = ET.Element(f"{{{EML}}}eml", about)
    dataset = ET.SubElement(root, "dataset")
    _put(dataset, "title", told.title).set(f"{{{_XML}}}lang", told.language)
    for person in told.creators:
        _person(dataset, "creator", person)
    for person in told.contacts:
        _person(dataset, "metadataProvider", person)
    _put(dataset, "pubDate", told.published or published)
    _put(dataset, "language", told.language)
    abstract = ET.SubElement(dataset, "abstract")
    for paragraph in filter(str.strip, told.description.split("\n\n")):
        _put(abstract, "para", " ".join(paragraph.split()))
    _put(ET.SubElement(dataset, "additionalInfo"), "para", how)
    name, url = LICENCES[told.licence]
    # GBIF reads the licence from the link
    rights = _put(ET.SubElement(dataset, "intellectualRights"), "para", "This work is licensed under a ")
    link = ET.SubElement(rights, "ulink", {"url": url})
    _put(link, "citetitle", f"{name} ({told.licence})")
    link.tail = " License."
    licensed = ET.SubElement(dataset, "licensed")
    for key, value in (("licenseName", name), ("url", url), ("identifier", told.licence)):
        _put(licensed, key, value)
    for person in told.contacts:
        _person(dataset, "contact", person)
    if told.publisher:
        _person(dataset, "publisher", {"organization": told.publisher})
    return document(root)


def document(root: ET.Element) -> bytes:
    """`root` as a file, with control characters, which XML has no way to write, written out as escapes."""
    for element in root.iter():
        element.attrib.update({name: printable(value) for name, value in element.attrib.items()})
        element.text = element.text and printable(element.text)
    text: bytes = ET.tostring(root, encoding="UTF-8", xml_declaration=True)
    return text + b"\n"


def _person(parent: ET.Element, role: str, told: Mapping[str, str]) -> None:
    made = ET.SubElement(parent, role)
    if "surname" in told:
        name = ET.SubElement(made, "individualName")
        for key, tag in (("given_name", "givenName"), ("surname", "surName")):
            if key in told:
                _put(name, tag, told[key])
    elements = {
        "organization": "organizationName",
        "position": "positionName",
        "email": "electronicMailAddress",
        "url": "onlineUrl",
    }
    for key, tag in elements.items():
        if key in told:
            _put(made, tag, told[key])
    if "orcid" in told:
        _put(made, "userId", told["orcid"]).set("directory", "https://orcid.org/")


def _put(parent: ET.Element, tag: str, text: str) -> ET.Element:
    made = ET.SubElement(parent, tag)
    made.text = text
    return made
