-- Read a part of a log, forward from an offset, atomically. Begins with entries.lua.
--
-- KEYS  meta log
-- ARGV  the offset before the first event, most events, most bytes of the events
-- Return {} for a topic that is unknown or deleted, else
--        {epoch, offset, chain, {event, "ID CHAIN", …}}
local position = read_any('HMGET', KEYS[1], 'epoch', 'offset', 'chain', 'deleted')
local offset, chain = whole(position[2]), whole(position[3])
if position[4] or not position[1] or not offset or not chain or offset == 0 then return {} end
local events = {}
if tonumber(ARGV[1]) < offset then
  events = read_events('XRANGE', KEYS[2], ARGV[1] + 1, offset, tonumber(ARGV[2]), tonumber(ARGV[3]))
end
return {position[1], string.format('%d', offset), string.format('%08x', chain), events}
