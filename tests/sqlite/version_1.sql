-- A store of version 1, as sqlite3's .dump gives it: a group with retries, one with a dead letter.
BEGIN TRANSACTION;
CREATE TABLE attempts (
    group_name TEXT NOT NULL,
    position INTEGER NOT NULL,
    subscription TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    due_at REAL NOT NULL,
    delay REAL NOT NULL,
    done TEXT NOT NULL,
    PRIMARY KEY (group_name, position)
) STRICT, WITHOUT ROWID;
INSERT INTO "attempts" VALUES('default',2,'late',1,1.79576681071715569494e+09,1000.0,'[]');
INSERT INTO "attempts" VALUES('default',4,'late',1,1.79577081071702980997e+09,5.00000000000000363814e+03,'[]');
CREATE TABLE dead_letters (
    id INTEGER PRIMARY KEY,
    position INTEGER NOT NULL,
    group_name TEXT NOT NULL,
    subscription TEXT NOT NULL,
    aggregate_id TEXT,
    attempts INTEGER NOT NULL,
    first_failed_at TEXT NOT NULL,
    last_failed_at TEXT NOT NULL,
    error_type TEXT NOT NULL,
    message TEXT NOT NULL,
    traceback TEXT NOT NULL
) STRICT;
INSERT INTO "dead_letters" VALUES(1,3,'mail','send','k0',1,'2026-11-27T07:50:10.717238+00:00','2026-11-27T07:50:10.717238+00:00','KeyError','''größer''','Traceback (most recent call last):
  File "/program/triobus/_groups/workers.py", line 414, in _work
    result = await subscription._invoke(delivery.event)
             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/program/notes.py", line 20, in send
    if event.number == 3: raise KeyError("größer")
                          ^^^^^^^^^^^^^^^^^^^^^^^^
KeyError: ''größer''
');
CREATE TABLE events (
    position INTEGER PRIMARY KEY,
    event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    schema_version INTEGER NOT NULL,
    aggregate_id TEXT,
    sequence INTEGER,
    recorded_at TEXT NOT NULL,
    data TEXT NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
INSERT INTO "events" VALUES(1,'01a21bfb-b61b-74e6-95ac-fd786612fffa','noted',1,'k1',1,'2026-11-27T07:50:10.715918+00:00','{"number":1,"key":"k1","event_id":"01a21bfb-b61b-74e6-95ac-fd786612fffa","occurred_at":"2026-11-27T07:50:10.715256Z","correlation_id":null,"causation_id":null,"metadata":{}}',3291902913);
INSERT INTO "events" VALUES(2,'01a21bfb-b61b-7386-9770-18740356ab25','noted',1,NULL,NULL,'2026-11-27T07:50:10.715918+00:00','{"number":2,"key":null,"event_id":"01a21bfb-b61b-7386-9770-18740356ab25","occurred_at":"2026-11-27T07:50:10.715276Z","correlation_id":null,"causation_id":null,"metadata":{}}',448955627);
INSERT INTO "events" VALUES(3,'01a21bfb-b61b-746e-81c9-22ffeb80c7b0','noted',1,'k0',1,'2026-11-27T07:50:10.715918+00:00','{"number":3,"key":"k0","event_id":"01a21bfb-b61b-746e-81c9-22ffeb80c7b0","occurred_at":"2026-11-27T07:50:10.715285Z","correlation_id":null,"causation_id":null,"metadata":{}}',2202699227);
INSERT INTO "events" VALUES(4,'01a21bfb-b61b-7e9b-841c-6ecf81c8c787','noted',1,NULL,NULL,'2026-11-27T07:50:10.715918+00:00','{"number":4,"key":null,"event_id":"01a21bfb-b61b-7e9b-841c-6ecf81c8c787","occurred_at":"2026-11-27T07:50:10.715292Z","correlation_id":null,"causation_id":null,"metadata":{}}',1342021379);
INSERT INTO "events" VALUES(5,'01a21bfb-b61b-700e-a471-40113a379bba','noted',1,'k2',1,'2026-11-27T07:50:10.715918+00:00','{"number":5,"key":"k2","event_id":"01a21bfb-b61b-700e-a471-40113a379bba","occurred_at":"2026-11-27T07:50:10.715298Z","correlation_id":null,"causation_id":null,"metadata":{}}',3924390205);
INSERT INTO "events" VALUES(6,'01a21bfb-b61b-71c6-bcf1-113480e2911a','noted',1,NULL,NULL,'2026-11-27T07:50:10.715918+00:00','{"number":6,"key":null,"event_id":"01a21bfb-b61b-71c6-bcf1-113480e2911a","occurred_at":"2026-11-27T07:50:10.715304Z","correlation_id":null,"causation_id":null,"metadata":{}}',624829157);
INSERT INTO "events" VALUES(7,'00000000-0000-0000-0000-000000000007','noted',1,'k1',2,'2026-11-27T07:50:10.720235+00:00','{"number":7,"key":"k1","event_id":"00000000-0000-0000-0000-000000000007","occurred_at":"2026-11-27T07:50:10.719817Z","correlation_id":"00000000-0000-0000-0000-000000000001","causation_id":null,"metadata":{}}',255017131);
INSERT INTO "events" VALUES(8,'00000000-0000-0000-0000-000000000008','noted',1,'k1',3,'2026-11-27T07:50:10.722113+00:00','{"number":8,"key":"k1","event_id":"00000000-0000-0000-0000-000000000008","occurred_at":"2026-11-27T07:50:10.721776Z","correlation_id":"00000000-0000-0000-0000-000000000001","causation_id":"00000000-0000-0000-0000-000000000007","metadata":{}}',1642312643);
CREATE TABLE finished (
    group_name TEXT NOT NULL,
    first_position INTEGER NOT NULL,
    last_position INTEGER NOT NULL,
    PRIMARY KEY (group_name, first_position)
) STRICT, WITHOUT ROWID;
INSERT INTO "finished" VALUES('default',3,3);
INSERT INTO "finished" VALUES('default',5,8);
CREATE TABLE progress (
    name TEXT PRIMARY KEY,
    position INTEGER NOT NULL,
    checksum INTEGER,
    fences INTEGER
) STRICT, WITHOUT ROWID;
INSERT INTO "progress" VALUES('',8,1642312643,1);
INSERT INTO "progress" VALUES('default',1,4025897148,NULL);
INSERT INTO "progress" VALUES('mail',8,3933149440,NULL);
CREATE UNIQUE INDEX events_by_id ON events (event_id);
CREATE INDEX events_by_aggregate ON events (aggregate_id) WHERE aggregate_id IS NOT NULL;
COMMIT;
