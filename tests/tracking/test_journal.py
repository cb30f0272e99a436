import json

from vitrail.tracking.journal import Journal


def records(journal: Journal, offset: int = 0) -> list:
    return [entry.record for entry in journal.entries(offset)]


def test_records_come_back_in_order_from_any_place(tmp_path):
    journal = Journal(tmp_path)
    for number in range(5):
        journal.append({"kind": "metrics", "number": number})
    entries = list(journal.entries(0))
    assert [entry.record["number"] for entry in entries] == [0, 1, 2, 3, 4]
    assert [record["number"] for record in records(Journal(tmp_path), entries[2].end)] == [3, 4]
    assert entries[-1].end == journal.end()


def test_half_a_line_left_by_a_dead_process_spoils_nothing_else(tmp_path):
    journal = Journal(tmp_path)
    journal.append({"n": 1})
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"n": 2, "val')
    assert records(journal) == [{"n": 1}]

    again = Journal(tmp_path)
    again.append({"n": 3})
    assert records(again) == [{"n": 1}, None, {"n": 3}]
    assert list(again.entries(0))[-1].end == again.end()


def test_state_is_replaced_whole_and_a_spoilt_one_counts_as_none(tmp_path):
    journal = Journal(tmp_path)
    assert journal.load_state() == {}
    journal.save_state({"records": 7})
    assert Journal(tmp_path).load_state() == {"records": 7}
    (tmp_path / "state.json").write_text("")
    assert journal.load_state() == {}


def test_quarantine_keeps_the_record_and_the_reason(tmp_path):
    journal = Journal(tmp_path)
    journal.quarantine({"kind": "params"}, "changed")
    (entry,) = Journal(tmp_path).quarantined()
    assert (entry["record"], entry["reason"]) == ({"kind": "params"}, "changed")
    assert json.loads((tmp_path / "quarantine.jsonl").read_text()) == entry


def test_kept_files_never_share_a_name(tmp_path):
    journal, other = Journal(tmp_path), Journal(tmp_path)
    names = {box.keep_file(bytes([n]), ".bin") for n in range(20) for box in (journal, other)}
    assert len(names) == 40
