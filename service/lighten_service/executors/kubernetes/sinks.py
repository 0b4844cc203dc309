"""Carry what reflectors see into the view."""

from sys import intern

from lighten_service.executors.kubernetes.facts import Said
from lighten_service.executors.kubernetes.naming import QUEUED_JOB_LABEL, key_of
from lighten_service.executors.kubernetes.view import Json, View


class Jobs:
    """Jobs. What a launch puts itself while a list is read is newer than the list."""

    def __init__(self, view: View, instance: str) -> None:
        self._view = view
        self._instance = instance
        self._round = 0

    def begin_list(self) -> None:
        self._round += 1

    def put(self, item: Json) -> None:
        self._view.put_job(item, self._round)

    def gone(self, item: Json) -> None:
        key = key_of(item["metadata"], self._instance)
        if key is not None:
            self._view.drop_job(key)

    def end_list(self) -> None:
        for key in self._view:
            launch = self._view.get(key)
            if launch is not None and launch.job_round < self._round:
                self._view.drop_job(key)


class Pods:
    """Pods, among them those that were read one by one while a list was."""

    def __init__(self, view: View) -> None:
        self._view = view
        # While a list is read.
        self._listed: set[str] | None = None

    def begin_list(self) -> None:
        self._listed = set()

    def put(self, item: Json) -> None:
        if self._listed is not None:
            self._listed.add(item["metadata"]["uid"])
        self._view.put_pod(item)

    def gone(self, item: Json) -> None:
        self._view.put_pod(item, gone=True)

    def end_list(self) -> None:
        if self._listed is not None:
            self._view.keep_pods(self._listed)
        self._listed = None


class Refusals:
    """Events of Jobs for which no pod could be made. They expire: none that goes matters."""

    def __init__(self, view: View) -> None:
        self._view = view

    def begin_list(self) -> None:
        pass

    def put(self, item: Json) -> None:
        about = item.get("involvedObject") or {}
        message = intern((item.get("message") or "").removeprefix("Error creating: "))
        self._view.refuse_pod(about.get("name", ""), Said(item.get("reason", ""), message))

    def gone(self, item: Json) -> None:
        pass

    def end_list(self) -> None:
        pass


class Workloads:
    """Kueue's view of our Jobs: why they are not admitted."""

    def __init__(self, view: View) -> None:
        self._view = view

    def begin_list(self) -> None:
        pass

    def put(self, item: Json) -> None:
        labels = item["metadata"].get("labels") or {}
        self._view.explain_queue(labels.get(QUEUED_JOB_LABEL, ""), _reason(item))

    def gone(self, item: Json) -> None:
        pass

    def end_list(self) -> None:
        pass


def _reason(item: Json) -> str:
    """Return why Kueue keeps a workload waiting; empty when it does not."""
    conditions = (item.get("status") or {}).get("conditions") or ()
    found = {each["type"]: each for each in conditions}
    if found.get("Admitted", {}).get("status") == "True":
        return ""
    waits = found.get("QuotaReserved", {})
    if waits.get("status") == "False":
        return intern(waits.get("message") or "")
    return ""
