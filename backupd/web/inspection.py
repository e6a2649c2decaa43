"""Whether files and list agree: begin to look, or to repair, and see what was found."""

from __future__ import annotations

from backupd.errors import NoSuchRequest
from backupd.receiver.inspection import Report
from backupd.web import messages
from backupd.web.endpoint import Answer, Api, Call, Who

__all__ = ["routes"]

PATH = "/api/v1/inspection"


def routes(api: Api) -> None:
    """Register the endpoints."""
    service = api.service

    @api.endpoint(
        "POST",
        PATH,
        says="Look whether files and list agree, or repair what does not.",
        takes=messages.Inspect,
        gives=messages.InspectionView,
        who=Who.OPERATOR,
        notes="inspected",
    )
    async def inspect(call: Call, message: messages.Inspect) -> Answer:
        call.noted = "to repair" if message.repair else "to look"
        return Answer(_view(service.inspection.begin(repair=message.repair)), 202)

    @api.endpoint(
        "GET",
        PATH,
        says="What the last inspection has found, so far while it is running.",
        gives=messages.InspectionView,
        who=Who.OPERATOR,
    )
    async def inspection(call: Call) -> Answer:
        report = service.inspection.report
        if report is None:
            raise NoSuchRequest("Nothing was inspected since this server started.")
        return Answer(_view(report))


def _view(report: Report) -> messages.InspectionView:
    return messages.InspectionView(
        repair=report.repair,
        running=report.running,
        looked_at=report.looked_at,
        bytes_read=report.bytes_read,
        findings=[
            messages.FindingView(
                path=one.path,
                why=one.why,
                remedy=one.remedy,
                advice=one.advice,
                repaired=one.repaired,
            )
            for one in report.findings
        ],
        more=report.more,
        more_repaired=report.more_repaired,
        failure=report.failure if not report.running else None,
    )
