-- Read what is stored of a topic beside its log, atomically. Begins with entries.lua.
--
-- KEYS  meta log state fence seen
-- Return {} for an unknown topic, or one whose position another program has written, else
--        {epoch, offset, chain, owner, deleted, open, time to live in ms, server's time in s,
--        {key, event, …}, {job, entry, …}, {producer, entry, …}}
local meta = KEYS[1]
local position = read_any('HMGET', meta, 'epoch', 'offset', 'chain', 'owner', 'deleted', 'open')
local offset, chain = whole(position[2]), whole(position[3])
if not position[5] and not (position[1] and offset and chain) then return {} end
return {
  position[1] or '', position[2] or '0', position[3] or '0', position[4] or '',
  position[5] and 1 or 0, position[6] or '', redis.call('PTTL', meta), redis.call('TIME')[1],
  read_any('HGETALL', KEYS[3]), read_any('HGETALL', KEYS[4]), read_any('HGETALL', KEYS[5]),
}
