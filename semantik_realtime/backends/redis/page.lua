-- Read a part of a log, forward from an offset, atomically. Begins with entries.lua.
--
-- KEYS  meta log
-- ARGV  the offset before the first event, most events, most bytes of the events
-- Return {} for a topic that is unknown or deleted, else
--        {epoch, offset, chain, {event, "ID CHAIN", …}}
local position = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'chain', 'deleted')
if position[4] or not position[1] or not position[2] or position[2] == '0' then return {} end
local events = {}
if tonumber(ARGV[1]) < tonumber(position[2]) then
  events = read_events('XRANGE', KEYS[2], ARGV[1] + 1, tonumber(ARGV[2]), tonumber(ARGV[3]))
end
return {position[1], position[2], string.format('%08x', tonumber(position[3])), events}
