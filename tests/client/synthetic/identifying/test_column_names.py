"""Names of columns: which speak of a person, and which only sound like it."""

from __future__ import annotations

import pytest

from quorate_client.synthetic.identifying.column_names import named_like_a_number, said_by_name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("name", "name"),
        ("Name_2", "name"),
        ("patientName", "name"),
        ("PATIENT NAME", "name"),
        ("Nachname", "name"),
        ("vorname_des_patienten", "name"),
        ("Prénom", "name"),
        ("nom", "name"),
        ("primer_apellido", "name"),
        ("achternaam", "name"),
        ("cognome", "name"),
        ("nombre_completo", "name"),
        ("E-Mail", "e-mail"),
        ("eMailAdresse", "e-mail"),
        ("correo electrónico", "e-mail"),
        ("Telefonnummer", "telephone number"),
        ("phone1", "telephone number"),
        ("tel.", "telephone number"),
        ("numéro de téléphone", "telephone number"),
        ("homePhone", "telephone number"),
        ("KVNR", "insurance number"),
        ("Versicherten-Nr.", "insurance number"),
        ("nhsNumber", "insurance number"),
        ("numéro de sécurité sociale", "insurance number"),
        ("bsn", "insurance number"),
        ("codiceFiscale", "insurance number"),
        ("pat_id", "record number"),
        ("MRN", "record number"),
        ("policyNumber", "record number"),
        ("Aktenzeichen", "record number"),
        ("numero_de_dossier", "record number"),
        ("IBAN", "record number"),
        ("Straße", "address"),
        ("strasse_nr", "address"),
        ("PLZ", "address"),
        ("code postal", "address"),
        ("home_address", "address"),
        ("domicilio", "address"),
        ("dob", "date of birth"),
        ("GebDat", "date of birth"),
        ("date_of_birth", "date of birth"),
        ("fecha de nacimiento", "date of birth"),
        ("data di nascita", "date of birth"),
        ("Bemerkungen", "free text"),
        ("comments", "free text"),
        ("vrije_opmerking", "free text"),
    ],
)
def test_a_name_that_speaks_of_a_person_is_understood(name: str, kind: str) -> None:
    sign = said_by_name(name)
    assert sign is not None
    assert sign.kind == kind


@pytest.mark.parametrize(
    "name",
    [
        "patient_age",
        "named",
        "drug_name",
        "hospital_name",
        "phone_calls",
        "number_of_phones",
        "n_address",
        "anzahl_telefonate",
        "nombre_de_visites",
        "nombre_enfants",
        "days_since_address_change",
        "own_telephone",
        "insurance_type",
        "birth_weight",
        "birth_year",
        "geburtsgewicht",
        "family_history",
        "first_visit",
        "body_mass_index",
        "cell_size",
        "mobile",
        "hospital_id",
        "ward_no",
        "via",
        "cap",
        "nir_spectroscopy",
        "telomere_length",
        "surnamed",
        "anonymised",
        "policy_type",
        "noted",
        "mean radius",
        "identity",
        "",
        "123",
    ],
)
def test_a_name_that_only_sounds_like_it_is_left_alone(name: str) -> None:
    assert said_by_name(name) is None
    assert not named_like_a_number(name)


@pytest.mark.parametrize("name", ["id", "ID", "Nr.", "record_key", "index", "patient_key", "id_1"])
def test_a_lone_word_of_numbering_waits_for_the_values(name: str) -> None:
    assert named_like_a_number(name)
    assert said_by_name(name) is None
