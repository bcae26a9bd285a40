-- Refuse to write while the server is closed: its topics are moved, or were moved, to another one.
-- It is put in front of the scripts that write; script.py sets `mark` to the key after theirs, which
-- is absent in a cluster.
local closed = mark and redis.pcall('HGET', mark, 'closed')
if type(closed) == 'string' then return redis.error_reply('CLOSED ' .. closed) end
