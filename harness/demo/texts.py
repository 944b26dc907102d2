"""What the demo's pipeline reads: requests, passages, and what each model is told."""

from __future__ import annotations

from typing import Final

LABELS: Final = ("account", "delivery", "device", "invoice")

CLASSIFY: Final = (
    "Sort the request into exactly one of four groups. account: signing in, passwords, profiles "
    "and permissions. delivery: parcels, addresses, dates and carriers. device: anything that is "
    "plugged in, worn or charged and does not do what it should. invoice: prices, payments, "
    "refunds and taxes. Answer with the name of the group and nothing else."
)
WRITE: Final = (
    "Answer the request in three sentences. Use only what the passages say, name the next step, "
    "and say so when the passages do not help."
)
RUBRIC: Final = (
    "You grade answers of a help desk from 1 (useless) to 5 (nothing to add). An answer loses a "
    "point for every claim that is not in the passages, a point when it names no next step, a "
    "point when it does not answer what was asked, and a point when it is longer than three "
    "sentences. Answer with the grade and nothing else."
)

PASSAGES: Final = (
    (
        "A password is reset from the sign-in page: the link goes to the address of the account and "
        "holds for one hour. After five wrong attempts the account is locked for fifteen minutes; "
        "nobody at the help desk can unlock it earlier, and a new link does not shorten the wait. "
        "Accounts with a second factor need the code of the authenticator as well as the new password."
    ),
    (
        "A parcel whose tracking has not moved for three working days is searched for by the carrier. "
        "The search takes up to five days, and a replacement is sent on the sixth. The address can be "
        "changed until the parcel has left the depot; after that it goes back to us first, which costs "
        "the customer nothing but takes a week."
    ),
    (
        "A device that does not charge is first tried with another cable and another socket for half "
        "an hour. If its light stays dark, holding the power button for twenty seconds empties what is "
        "left in the controller. Devices younger than two years are replaced; older ones are repaired "
        "at cost, and the estimate is free."
    ),
    (
        "Invoices are sent on the first working day of the month to the address in the billing "
        "profile. A wrong name or tax number is corrected within thirty days by a cancellation and a "
        "new invoice; amounts that were paid twice are returned to the same card within ten days "
        "without asking."
    ),
)

REQUESTS: Final = (
    (
        "I have asked for a new password three times this morning, the link in the mail says that it "
        "is no longer valid, and now the page tells me that my account is locked. I need the report "
        "that is in there before my meeting at noon."
    ),
    (
        "The tracking page has said for four days that my parcel is in the depot in Hanover. It holds "
        "a present for a birthday on Saturday, and we are going away on Friday evening."
    ),
    (
        "My headset is not charging any more. The light came on for a moment yesterday and has been "
        "dark since, with the cable that came with it and with the one of my phone."
    ),
    (
        "You took the amount of the March invoice twice from my card. Please send one of them back and "
        "tell me how long that takes, because the account is now below zero."
    ),
    (
        "We moved last month and I forgot to change the address before I ordered. The parcel is to "
        "arrive tomorrow at a house in which nobody knows us."
    ),
    (
        "Our new colleague has had an invitation, and when she opens it she is told that she has no "
        "permission. I am the owner of the team and can see her name in the list."
    ),
    (
        "The tax number on the invoices of this quarter is that of our old company. Our accountant "
        "cannot use them, and the quarter is to be closed next week."
    ),
    (
        "The watch counts steps while it lies on the table and none while I walk. It is three years "
        "old, and restarting it did not help. Is it worth repairing?"
    ),
)
