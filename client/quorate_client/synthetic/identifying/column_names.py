"""What the name of a column says about it, in German, English, French, Spanish, Dutch and Italian.

A name is split into words at everything that is no letter, at digits and at humps (``patientName``), without accents.
Only whole words count: ``named`` is no name. Words that harmless columns hold too (``name``, ``id``) count only where
all words beside them speak of a person or of numbering: ``patient_name`` does, ``drug_name`` does not. And a name that
counts or judges says nothing about anybody: ``phone_calls``, ``days_since_address_change``.
"""

from __future__ import annotations

import re
import unicodedata

from quorate_client.synthetic.identifying.sign import Kind, Sign


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_PHRASES_TOLD: dict[Kind, str] = {
    "date of birth": "dob|bday|birthdate|birthday|birth date|date of birth|geburtsdatum|geburts datum|geburtstag|"
    "gebdatum|gebdat|geb datum|geb dat|date naissance|date de naissance|fecha nacimiento|fecha de nacimiento|"
    "fecha nac|fec nac|geboortedatum|geboorte datum|data nascita|data di nascita",
    "e-mail": "email|e mail|mail address|mail adresse|mailadresse|emailadresse|emailaddress|courriel|"
    "correo electronico|posta elettronica",
    "telephone number": "telephone|telefon|telefono|telefoon|phone|phonenumber|telefonnummer|telefonnr|"
    "telefoonnummer|cellphone|mobile number|mobile no|mobilnummer|mobilnr|mobil nr|mobiltelefon|handynummer|handynr|"
    "rufnummer|fax|telefax|faxnummer|msisdn|cellulare|gsm nummer",
    "insurance number": "ssn|social security number|social security no|kvnr|kv nr|kv nummer|"
    "krankenversichertennummer|versichertennummer|versichertennr|versicherten nummer|versicherten nr|"
    "versicherungsnummer|versicherungsnr|versicherungs nr|sozialversicherungsnummer|svnr|sv nummer|rvnr|"
    "rentenversicherungsnummer|nhs number|nhs no|nhsno|nino|national insurance number|national insurance no|"
    "insurance number|insurance no|insurance id|member id|medicare number|medicare no|numero securite sociale|"
    "numero de securite sociale|num secu|numero secu|numero seguridad social|numero de seguridad social|"
    "tarjeta sanitaria|bsn|burgerservicenummer|sofinummer|verzekeringsnummer|codice fiscale|tessera sanitaria|"
    "ahv nummer|ahv nr|ahvnr|steuernummer|steuer id|tax id|passport|reisepass|reisepassnummer|passnummer|"
    "personalausweis|ausweisnummer|driver license|driving licence|fuehrerscheinnummer",
    "record number": "iban|account number|account no|accountnumber|kontonummer|konto nr|numero compte|"
    "numero de compte|numero cuenta|numero de cuenta|rekeningnummer|credit card|card number|kreditkarte|"
    "kreditkartennummer|kartennummer|mrn|record number|record no|record id|recordid|row id|rowid|patient number|"
    "patient no|patient nr|patient id|patientid|patid|pat id|pat nr|patnr|patientennummer|patientennr|patienten nr|"
    "patienten id|patientnummer|case number|case no|case id|caseid|fallnummer|fallnr|fall nr|fall id|fallid|"
    "aufnahmenummer|encounter id|visit id|admission id|hadm id|stay id|person id|personid|subject id|subjectid|"
    "user id|userid|customer number|customer no|customer id|client id|kundennummer|kundennr|kunden nr|klantnummer|"
    "policy number|policy no|policy id|policynumber|policennummer|policen nr|polisnummer|vertragsnummer|vertragsnr|"
    "vertrags nr|contract number|contract no|claim number|claim no|claim id|schadennummer|schadennr|schaden nr|"
    "aktenzeichen|aktennummer|akten nr|personalnummer|dossiernummer|dossier nr|numero dossier|numero de dossier|"
    "numero patient|historia clinica|numero historia|numero expediente|numero poliza|numero cartella|numero polizza|"
    "codice paziente|uuid|guid|laufnummer|laufende nummer|lfd nr|lfdnr",
    "address": "address|adresse|anschrift|wohnadresse|hausnummer|hausnr|haus nr|house number|house no|huisnummer|"
    "street name|streetname|straatnaam|str nr|plz|postleitzahl|postcode|post code|postal code|postalcode|zip code|"
    "zipcode|code postal|codepostal|codigo postal|direccion|domicilio|indirizzo|adres|woonadres|latitude|longitude|"
    "breitengrad|laengengrad|geocode",
    "name": "surname|forename|lastname|firstname|fullname|last name|first name|middle name|given name|family name|"
    "maiden name|full name|contact name|initials|initialen|vorname|nachname|familienname|zuname|geburtsname|rufname|"
    "patientenname|patientname|kundenname|versichertenname|prenom|nom de famille|nom de naissance|nom patient|"
    "apellido|apellidos|nombre completo|nombre paciente|nombre de pila|cognome|nome paziente|achternaam|voornaam",
    "free text": "free text|freetext|freitext|comment|comments|kommentar|kommentare|bemerkung|bemerkungen|anmerkung|"
    "anmerkungen|remark|remarks|notes|notizen|narrative|befundtext|commentaire|commentaires|texte libre|comentario|"
    "comentarios|observaciones|texto libre|opmerking|opmerkingen|annotazioni|osservazioni|testo libero",
}
_LONE_TOLD: dict[Kind, str] = {
    "date of birth": "geb ddn",
    "e-mail": "mail",
    "telephone number": "tel handy movil",
    "insurance number": "nhs ahv nif dni nir mbi",
    "address": "street strasse str rue calle straat zip",
    "name": "name names nom nombre nome naam",
    "record number": "id ids pid nr no number nummer index idx identifier kennung key",
}
_BESIDE = _set(
    # a person
    "patient patienten patientin pat paziente paciente insured versicherter versicherten person personal personne "
    "client cliente customer kunde kunden klant member mitglied subject proband holder owner user mother father "
    "mutter vater child spouse emergency contact kontakt home house private privat main primary work case record "
    "full complete first last middle given family legal birth maiden "
    # numbering and small words
    "no nr num number nummer numero code id key text line field value raw of the de des du del della di la le der "
    "von van a b c i ii"
)
_COUNTS_OR_JUDGES = _set(
    "has have had own owns hat any call calls contacts consultation consultations count counts change changes "
    "changed missing type typ art status day days week weeks month months year years jahr minutes duration time opt "
    "optin consent reachable verified visit visits usage cost costs price bill bills provider cover since mean "
    "quality length score group class region level risk"
)
_COUNTS_FIRST = _set("n nb anzahl count cnt total aantal")
_NUMBER_OF = {("number", "of"), ("no", "of"), ("num", "of"), ("nombre", "d"), ("nombre", "des")}

_PHRASES = {kind: frozenset(tuple(each.split()) for each in told.split("|")) for kind, told in _PHRASES_TOLD.items()}
_LONE = {kind: _set(told) for kind, told in _LONE_TOLD.items()}
_LONGEST = max(len(phrase) for phrases in _PHRASES.values() for phrase in phrases)
_UMLAUTS = str.maketrans({"ß": "ss", "ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue"})


def said_by_name(name: str) -> Sign | None:
    """What the name claims the column to be. A lone ``id`` claims nothing yet: see ``named_like_a_number``."""
    words = _words(name)
    if _counts_or_judges(words):
        return None
    pieces = {tuple(words[at : at + length]) for length in range(1, _LONGEST + 1) for at in range(len(words))}
    for kind, phrases in _PHRASES.items():
        if phrases & pieces:
            return Sign(kind, "its name says so")
    for kind, lone in _LONE.items():
        if kind != "record number" and _stands_alone(words, lone):
            return Sign(kind, "its name says so")
    return None


def named_like_a_number(name: str) -> bool:
    """Whether the name, such as ``id``, numbers records in some tables and means little in others."""
    return _stands_alone(_words(name), _LONE["record number"])


def _stands_alone(words: list[str], meant: frozenset[str]) -> bool:
    return not meant.isdisjoint(words) and (meant | _BESIDE).issuperset(words)


def _counts_or_judges(words: list[str]) -> bool:
    counts = len(words) > 1 and (words[0] in _COUNTS_FIRST or tuple(words[:2]) in _NUMBER_OF)
    return counts or not _COUNTS_OR_JUDGES.isdisjoint(words)


def _words(name: str) -> list[str]:
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFC", name).translate(_UMLAUTS))
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    humps = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", plain)
    return re.findall(r"[a-z]+", humps.lower())
