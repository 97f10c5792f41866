"""How much of the disk the output files of each client may take: a share of what is free, and a limit."""

from __future__ import annotations

from glmtts.protocol.errors import ErrorCode, RequestError

from ..effects import MeasureOutputs
from ..inputs import Client, OutputsMeasured
from ..shares import FREE_PART, Shares, part_of_free
from ..state import State


class OutputShares:
    """Owns the sizes of outputs by client, as they were measured last, and those of files that came since.

    Before the first measurement, and on a disk that can't be measured, nothing is refused here.
    """

    def __init__(self, state: State) -> None:
        self._context, self._alerts = state.context, state.alerts
        self._folder = state.installation.outputs_folder
        self.shares = Shares()
        #: Bytes that are free above the reserve.
        self._free: int | None = None

    @property
    def most(self) -> int:
        """Bytes that the files of one client may take at most; 0: as much as its share of the disk."""
        return self._context.settings.limits.outputs_mib << 20

    def room(self, client: Client) -> int | None:
        """Bytes that the next output of a client may take; None if that is not known."""
        if self._free is None:
            return None
        own, together = self.shares.of(client.key), self.shares.of_owner(client.owner)
        room = min(self._free, part_of_free(together, self._free))
        if self.most:
            room = min(room, self.most - together)
        # A gateway's customers share its room in the same way.
        return min(room, part_of_free(own, together - own + room)) if client.on_behalf_of else room

    def check(self, client: Client) -> None:
        """Refuse an output for which there is no room. Raises RequestError."""
        if problem := self.problem(client):
            self._context.effects.append(MeasureOutputs())
            raise RequestError(ErrorCode.OUTPUT_FAILED, problem)

    def problem(self, client: Client) -> str:
        """Why a client's output would be refused now; ``""`` if there is room."""
        room = self.room(client)
        if room is None or room > 0:
            return ""
        if self._free is not None and self._free <= 0:
            return (
                f"output: too little space is free in {self._folder}: the rest is kept for the journal of durable jobs "
                "([limits] disk_reserve_mib). Remove files there, or send the job without output"
            )
        return (
            f"output: your files in {self._folder} take {self.shares.of_owner(client.owner) >> 20} MiB, which is your "
            f"share ([limits] outputs_mib, and at most {FREE_PART:.0%} of what they and the free space make). "
            "Move files away, or send the job without output"
        )

    def wrote(self, client: Client, size: int) -> None:
        """A job has written an output."""
        self.shares.add(client.key, size)
        if self._free is not None:
            self._free -= size
            self._judge()

    def on_measured(self, event: OutputsMeasured) -> None:
        """The outputs folder and its disk were measured."""
        self._free = event.free
        self.shares = Shares()
        for client, size in event.by_client.items():
            self.shares.add(client, size)
        self._judge()

    def _judge(self) -> None:
        problem = ""
        if self.shares.total:
            client = self.shares.greatest()
            owner = Client.of(client, "").owner
            holds = f"the files of {client} take {self.shares.of(client) >> 20} MiB of {self._folder}"
            if self._free is not None and self._free <= 0:
                problem = f"outputs are refused, since too little space is free ([limits] disk_reserve_mib); {holds}"
            elif (room := self.room(Client(owner, ""))) is not None and room <= 0:
                problem = f"{holds}, its share ([limits] outputs_mib): its further outputs are refused"
        elif self._free is not None and self._free <= 0:
            problem = f"outputs are refused: too little space is free in {self._folder} ([limits] disk_reserve_mib)"
        self._alerts.set("outputs", problem)
