"""The texts of the demo's pipeline: requests, passages, and the instructions for each model."""

from __future__ import annotations

from typing import Final

LABELS: Final = ("account", "delivery", "device", "invoice")

CLASSIFY: Final = (
    "Sort the request into one of four groups: account, delivery, device, invoice. Answer with the "
    "name of the group and nothing else."
)
WRITE: Final = "Answer the request from the passage alone, and name the next step."
RUBRIC: Final = (
    "Grade the answer from 1 to 5. A point less for each: it claims what is not in the passage, it "
    "names no next step, it misses the question. Answer with the grade alone."
)

PASSAGES: Final = (
    (
        "A password is reset from the sign-in page; the link holds for an hour. After five wrong "
        "attempts the account is locked for fifteen minutes."
    ),
    (
        "A parcel that has not moved for three working days is searched for by the carrier. The "
        "address can be changed until it has left the depot."
    ),
    (
        "If a device does not charge, hold its power button for twenty seconds. Devices younger "
        "than two years are replaced, older ones repaired."
    ),
    (
        "A wrong name or tax number is corrected within thirty days by a new invoice. Amounts "
        "that were paid twice return within ten days."
    ),
)

REQUESTS: Final = (
    (
        "The link in the mail for my new password is no longer valid, and now my account is "
        "locked. I need the report in there before noon."
    ),
    (
        "The tracking page has said for four days that my parcel is in the depot. It holds a "
        "present for a birthday on Saturday."
    ),
    (
        "My headset is not charging. The light came on for a moment yesterday and has been dark "
        "since, with two different cables."
    ),
    (
        "You took the amount of the March invoice twice from my card. Please send one of them back "
        "and tell me how long that takes."
    ),
    (
        "We moved last month and I forgot to change the address. The parcel is to arrive tomorrow "
        "at a house in which nobody knows us."
    ),
    (
        "Our new colleague has an invitation, and when she opens it she is told that she has no "
        "permission. I am the owner of the team."
    ),
    (
        "The tax number on the invoices of this quarter is that of our old company, and the "
        "quarter is to be closed next week."
    ),
    (
        "The watch counts steps while it lies on the table and none while I walk. It is three "
        "years old. Is it worth repairing?"
    ),
)
