"""Two public tables counted and scored again (E3): readmission of diabetic patients (UCI) and missed appointments.

They are read where PREMONITOR_DATA says and nowhere else: the appointments are licensed CC BY-NC-SA and may not be copied into this
repository, the other table is large. Without that folder these tests are skipped, and say so.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models import metrics

NUMERIC = [
    "time_in_hospital", "num_lab_procedures", "num_procedures", "num_medications",
    "number_outpatient", "number_emergency", "number_inpatient", "number_diagnoses",
]  # fmt: skip
EPOCH = pd.Timestamp("1970-01-01")
EXPIRED_OR_HOSPICE = ["11", "13", "14", "19", "20", "21"]


def table(path: str) -> pd.DataFrame:
    """A table as text, nothing read as null: "None" is a value of the first."""
    folder = os.environ.get("PREMONITOR_DATA")
    if not folder:
        pytest.skip("PREMONITOR_DATA names no folder: E3 was not checked")
    return pd.read_csv(Path(folder) / path, dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def uci() -> pd.DataFrame:
    return table("uci_diabetes130/diabetic_data.csv.gz")


@pytest.fixture(scope="module")
def appointments() -> pd.DataFrame:
    rows = table("noshow/appointments.csv.gz")
    return rows.assign(scheduled=rows["ScheduledDay"].str[:10], appointed=rows["AppointmentDay"].str[:10], missed=rows["No-show"] == "Yes")


def test_counts_of_readmissions(uci: pd.DataFrame) -> None:
    """Rows, patients, labels, who cannot be readmitted, and what is missing under two names."""
    assert (len(uci), uci["patient_nbr"].nunique()) == (71_084, 50_007)
    assert Counter(uci["readmitted"]) == {"<30": 7_897, ">30": 24_859, "NO": 38_328}
    assert uci["discharge_disposition_id"].isin(EXPIRED_OR_HOSPICE).sum() == 1_658
    assert [(uci[name] == "None").sum() for name in ("max_glu_serum", "A1Cresult")] == [67_322, 59_207]
    assert [(uci[name] == "?").sum() for name in ("race", "weight", "payer_code")] == [1_593, 68_867, 28_141]


def test_the_baseline_of_readmissions(uci: pd.DataFrame) -> None:
    """Eight numbers, standardised in a Pipeline, without penalty; a fifth of the patients apart: three metrics to six digits."""
    alive = uci[~uci["discharge_disposition_id"].isin(EXPIRED_OR_HOSPICE)]
    x, label = alive[NUMERIC].astype(float).to_numpy(), (alive["readmitted"] == "<30").to_numpy().astype(np.float64)
    test = alive["patient_nbr"].astype(int).to_numpy() % 5 == 0
    assert (int((~test).sum()), int(test.sum()), int(label[test].sum())) == (55_598, 13_828, 1_533)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=np.inf, tol=1e-10, max_iter=1_000)).fit(x[~test], label[~test])
    risk = model.predict_proba(x[test])[:, 1]
    found = [round(float(f(risk, label[test])), 6) for f in (metrics.auroc, metrics.average_precision, metrics.brier)]
    assert found == [0.637681, 0.204668, 0.095191]


def test_counts_of_missed_appointments(appointments: pd.DataFrame) -> None:
    """Rows, patients, labels, and the oddities: days before the booking, an age below nothing, numbers with an E."""
    assert (len(appointments), appointments["PatientId"].nunique(), int(appointments["missed"].sum())) == (77_611, 43_708, 15_702)
    assert int((appointments["scheduled"] > appointments["appointed"]).sum()) == 2
    assert int((appointments["scheduled"] == appointments["appointed"]).sum()) == 27_259
    assert int((appointments["Age"].astype(int) < 0).sum()) == 1
    assert int(appointments["PatientId"].str.contains("E").sum()) == 4


def test_missed_appointments_known_at_booking(appointments: pd.DataFrame) -> None:
    """Earlier ones of the patient on a day before the booking; before the day of the appointment there are more, but they leak."""
    patient = np.unique(appointments["PatientId"], return_inverse=True)[1] * 100_000
    booked, due = (patient + (pd.to_datetime(appointments[day]) - EPOCH).dt.days.to_numpy() for day in ("scheduled", "appointed"))
    missed = np.sort(due[appointments["missed"].to_numpy()])
    earlier = np.searchsorted(missed, patient)  # those of other patients
    found = [int((np.searchsorted(missed, day) - earlier).sum()) for day in (booked, due)]
    assert found == [10_098, 14_325]
