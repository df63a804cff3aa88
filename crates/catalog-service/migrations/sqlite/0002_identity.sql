-- Which database this is: the number of a change means nothing in another.
CREATE TABLE identity (
    row_number INTEGER NOT NULL PRIMARY KEY CHECK (row_number = 1),
    id         BLOB    NOT NULL
) STRICT;

INSERT INTO identity VALUES (1, randomblob(16));
