"""What nodes and publishers do in the database, each in one call: functions, version 1.

A function belongs to whoever has made the schema and works with their rights, on this schema
alone. Every statement of a function sees what was committed before the statement began, so that
what is looked up behind the log's lock is looked up in the log as it is. Lock and look in one
statement would see the log as it was.

Plans are made once and kept, most of them while the tables are empty: hence no sequential scans.
"""

_FUNCTION = """
CREATE FUNCTION {head} LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = {{schema}}, pg_temp SET enable_seqscan = off SET jit = off AS $$
{body}
$$;
REVOKE ALL ON FUNCTION {signature} FROM PUBLIC;
"""

_LOCK = """
BEGIN
    PERFORM pg_advisory_xact_lock(1953655138, hashtext(current_schema()));
END
"""

_FENCE = """
BEGIN
    PERFORM FROM segments
        WHERE group_name = '' AND segment = 0 AND owner = my_node AND token = my_token FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'node % has lost the log', my_node USING ERRCODE = 'TB001';
    END IF;
END
"""

_NOTIFY = """
BEGIN
    PERFORM pg_notify('triobus_' || md5(current_schema()), payload);
END
"""

_LASTS = """
BEGIN
    RETURN (SELECT array_agg(coalesce(
        (SELECT e.sequence FROM events e WHERE e.aggregate_id = n.name
            ORDER BY e.sequence DESC LIMIT 1), 0) ORDER BY n.number)
        FROM unnest(names) WITH ORDINALITY AS n (name, number));
END
"""

_APPEND = """
DECLARE
    micros bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(1953655138, hashtext(current_schema()));
    SELECT greatest((SELECT max(position) FROM events), floor) INTO base FROM log;
    IF EXISTS (SELECT FROM scheduled) THEN
        IF EXISTS (SELECT FROM scheduled s WHERE s.event_id = ANY (ids)) THEN
            RAISE EXCEPTION 'some are scheduled' USING ERRCODE = 'TB002';
        END IF;
    END IF;
    IF names IS NOT NULL THEN
        lasts := lasts_1(names);
        IF wanted IS NOT NULL AND EXISTS (
            SELECT FROM unnest(lasts, wanted) AS s (there, due) WHERE there <> due
        ) THEN
            RAISE EXCEPTION 'another sequence was expected' USING ERRCODE = 'TB002';
        END IF;
    END IF;
    recorded := clock_timestamp();
    micros := (extract(epoch FROM recorded) * 1000000)::bigint % 2147483647;
    INSERT INTO events
        SELECT base + n, id, type, version, names[name], lasts[name] + rank, slot, recorded, data,
            checksum # (((base + n) % 2147483647 * 40503
                + coalesce(lasts[name] + rank, 0) % 2147483647 * 30011 + micros) & 4294967295),
            correlation
        FROM unnest(ids, types, versions, name_of, ranks, slots, datas, checksums, correlations)
            WITH ORDINALITY
            AS e (id, type, version, name, rank, slot, data, checksum, correlation, n);
    PERFORM pg_notify('triobus_' || md5(current_schema()), (base + cardinality(ids))::text);
END
"""

_RECORD = """
DECLARE
    updated bigint;
BEGIN
    PERFORM fence_1(my_node, my_token);
    IF groups_ IS NOT NULL THEN
        UPDATE segments s SET position = g.reached
            FROM unnest(groups_, offsets) AS g (name, reached)
            WHERE s.group_name = g.name AND s.segment = 0
                AND s.owner = my_node AND s.token = my_token;
        GET DIAGNOSTICS updated = ROW_COUNT;
        IF updated < cardinality(groups_) THEN
            INSERT INTO groups (name, segments, start)
                SELECT * FROM (SELECT name, 1, reached FROM unnest(groups_, offsets)
                    AS g (name, reached)) AS n ON CONFLICT DO NOTHING;
            INSERT INTO segments (group_name, segment, token, owner, position)
                SELECT name, 0, my_token, my_node, reached FROM unnest(groups_, offsets)
                    AS g (name, reached) ON CONFLICT DO NOTHING;
        END IF;
    END IF;
    IF gone_of IS NOT NULL THEN
        DELETE FROM finished f USING unnest(gone_of, gone) AS g (name, first)
            WHERE f.group_name = g.name AND f.segment = 0 AND f.first_position = g.first;
    END IF;
    IF ranges_of IS NOT NULL THEN
        INSERT INTO finished SELECT name, 0, first, last FROM unnest(ranges_of, firsts, ends)
                AS r (name, first, last)
            ON CONFLICT (group_name, segment, first_position)
            DO UPDATE SET last_position = excluded.last_position;
    END IF;
    IF over_of IS NOT NULL THEN
        DELETE FROM attempts a USING unnest(over_of, over) AS g (name, at)
            WHERE a.group_name = g.name AND a.segment = 0 AND a.position = g.at;
    END IF;
    IF attempts_ IS NOT NULL THEN
        INSERT INTO attempts
            SELECT group_name, 0, position, subscription, attempts, due_at, delay, done
            FROM json_to_recordset(attempts_) AS a (group_name text, position bigint,
                subscription text, attempts bigint, due_at double precision,
                delay double precision, done text)
            ON CONFLICT (group_name, segment, position) DO UPDATE
                SET subscription = excluded.subscription, attempts = excluded.attempts,
                    due_at = excluded.due_at, delay = excluded.delay, done = excluded.done;
    END IF;
    IF discarded IS NOT NULL THEN
        DELETE FROM dead_letters WHERE id = ANY (discarded);
    END IF;
    IF letters IS NOT NULL THEN
        DELETE FROM dead_letters d USING json_to_recordset(letters) AS l (id bigint)
            WHERE d.id = l.id;
        INSERT INTO dead_letters
            SELECT id, position, group_name, 0, subscription, aggregate_id, attempts,
                first_failed_at, last_failed_at, error_type, message, traceback
            FROM json_to_recordset(letters) AS l (id bigint, position bigint, group_name text,
                subscription text, aggregate_id text, attempts bigint,
                first_failed_at timestamptz, last_failed_at timestamptz, error_type text,
                message text, traceback text);
        PERFORM setval(pg_get_serial_sequence('dead_letters', 'id'),
            greatest((SELECT max(id) FROM json_to_recordset(letters) AS l (id bigint)),
                last_letter_1(), 1));
    END IF;
END
"""

_LAST_LETTER = """
BEGIN
    RETURN (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM dead_letters_id_seq);
END
"""

_COMMIT = """
BEGIN
    PERFORM record_1(my_node, my_token, groups_, offsets, gone_of, gone, ranges_of, firsts, ends,
        over_of, over, attempts_, discarded, letters);
    SELECT a.base, a.recorded, a.lasts INTO base, recorded, lasts FROM append_1(ids, types,
        versions, name_of, ranks, names, wanted, slots, datas, checksums, correlations) AS a;
END
"""

_CLAIM = """
DECLARE
    had bigint;
BEGIN
    DELETE FROM nodes WHERE lease_until < clock_timestamp();
    SELECT s.owner, s.token INTO had, token FROM segments s
        WHERE s.group_name = '' AND s.segment = 0 FOR UPDATE;
    SELECT n.node, n.name, n.lease_until - clock_timestamp() INTO node, name, remaining
        FROM nodes n WHERE n.node = had;
    IF FOUND THEN
        is_mine := false;
        RETURN;
    END IF;
    INSERT INTO nodes AS n (name, lease_until) VALUES (my_name, clock_timestamp() + lease)
        RETURNING n.node INTO node;
    token := token + 1;
    UPDATE segments s SET owner = node, token = claim_1.token;
    name := my_name;
    is_mine := true;
    was_left := had IS NOT NULL;
END
"""

_RENEW = """
BEGIN
    UPDATE nodes SET lease_until = clock_timestamp() + lease WHERE node = my_node;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    RETURN head_1();
END
"""

_HEAD = """
BEGIN
    RETURN (SELECT greatest((SELECT max(position) FROM events), floor) FROM log);
END
"""

_LEAVE = """
BEGIN
    IF is_clean THEN
        UPDATE segments SET owner = NULL WHERE owner = my_node;
        DELETE FROM nodes WHERE node = my_node;
    ELSE
        UPDATE nodes SET lease_until = '-infinity' WHERE node = my_node;
    END IF;
END
"""

_KNOWN = """
BEGIN
    RETURN QUERY
        SELECT e.event_id, e.position, e.event_type, e.schema_version, e.aggregate_id, e.sequence,
            e.recorded_at, e.data FROM events e WHERE e.event_id = ANY (ids)
        UNION ALL
        SELECT s.event_id, NULL, s.event_type, s.schema_version, s.aggregate_id, NULL, NULL, s.data
            FROM scheduled s WHERE s.event_id = ANY (ids);
END
"""

_SCHEDULE = """
BEGIN
    INSERT INTO scheduled (due_at, event_id, event_type, schema_version, aggregate_id, data,
            correlation_id)
        VALUES (due, id, type, version, aggregate, data_, correlation);
END
"""

_UNSCHEDULE = """
BEGIN
    DELETE FROM scheduled s WHERE s.event_id = ANY (ids) AND s.due_at > now_;
    RETURN FOUND;
END
"""

_TAKE_DUE = """
BEGIN
    RETURN QUERY
        WITH due AS (SELECT s.number FROM scheduled s WHERE s.due_at <= now_
                ORDER BY s.due_at, s.number LIMIT most FOR UPDATE),
            gone AS (DELETE FROM scheduled s USING due WHERE s.number = due.number
                RETURNING s.due_at, s.number, s.event_id, s.event_type, s.schema_version,
                    s.aggregate_id, s.data, s.correlation_id)
        SELECT g.event_id, g.event_type, g.schema_version, g.aggregate_id, g.data,
            g.correlation_id FROM gone g ORDER BY g.due_at, g.number;
END
"""

_RESET = """
BEGIN
    DELETE FROM finished WHERE group_name = group_;
    DELETE FROM attempts WHERE group_name = group_;
    DELETE FROM dead_letters WHERE group_name = group_;
    PERFORM record_1(my_node, my_token, ARRAY[group_], ARRAY[reached], NULL, NULL, NULL, NULL,
        NULL, NULL, NULL, NULL, NULL, NULL);
END
"""

_EVENTS = (
    "ids uuid[], types text[], versions bigint[], name_of integer[], ranks integer[], "
    "names text[], wanted bigint[], slots smallint[], datas text[], checksums bigint[], "
    "correlations uuid[]"
)
_PLACES = "OUT base bigint, OUT recorded timestamptz, OUT lasts bigint[]"
_CHANGES = (
    "my_node bigint, my_token bigint, groups_ text[], offsets bigint[], gone_of text[], "
    "gone bigint[], ranges_of text[], firsts bigint[], ends bigint[], over_of text[], "
    "over bigint[], attempts_ json, discarded bigint[], letters json"
)


def _made(name: str, parameters: str, returns: str, body: str) -> str:
    """Return what makes a function; `returns` is empty where parameters say it."""
    given = [part.strip() for part in parameters.split(", ") if part]
    types = ", ".join(part.partition(" ")[2] for part in given if not part.startswith("OUT "))
    head = f"{name}({parameters})" + (f" RETURNS {returns}" if returns else "")
    return _FUNCTION.format(head=head, body=body.strip(), signature=f"{name}({types})")


FUNCTIONS_1 = "".join(
    _made(*each)
    for each in (
        ("lock_1", "", "void", _LOCK),
        ("head_1", "", "bigint", _HEAD),
        ("notify_1", "payload text", "void", _NOTIFY),
        ("fence_1", "my_node bigint, my_token bigint", "void", _FENCE),
        ("lasts_1", "names text[]", "bigint[]", _LASTS),
        ("append_1", f"{_EVENTS}, {_PLACES}", "", _APPEND),
        ("last_letter_1", "", "bigint", _LAST_LETTER),
        ("record_1", _CHANGES, "void", _RECORD),
        ("commit_1", f"{_CHANGES}, {_EVENTS}, {_PLACES}", "", _COMMIT),
        (
            "claim_1",
            "my_name text, lease interval, OUT is_mine boolean, OUT node bigint, "
            "OUT token bigint, OUT name text, OUT remaining interval, OUT was_left boolean",
            "",
            _CLAIM,
        ),
        ("renew_1", "my_node bigint, lease interval", "bigint", _RENEW),
        ("leave_1", "my_node bigint, is_clean boolean", "void", _LEAVE),
        (
            "known_1",
            "ids uuid[]",
            'TABLE (event_id uuid, "position" bigint, event_type text, schema_version bigint, '
            "aggregate_id text, sequence bigint, recorded_at timestamptz, data text)",
            _KNOWN,
        ),
        (
            "schedule_1",
            "due double precision, id uuid, type text, version bigint, aggregate text, "
            "data_ text, correlation uuid",
            "void",
            _SCHEDULE,
        ),
        ("unschedule_1", "ids uuid[], now_ double precision", "boolean", _UNSCHEDULE),
        (
            "take_due_1",
            "now_ double precision, most bigint",
            "TABLE (event_id uuid, event_type text, schema_version bigint, aggregate_id text, "
            "data text, correlation_id uuid)",
            _TAKE_DUE,
        ),
        (
            "reset_1",
            "my_node bigint, my_token bigint, group_ text, reached bigint",
            "void",
            _RESET,
        ),
    )
)
"""The script that makes them; the name of the schema, quoted, is to be put in."""
