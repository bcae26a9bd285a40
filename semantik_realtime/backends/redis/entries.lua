-- How many entries are read at once: more than the answer may have are read, and dropped.
local CHUNK = 32

-- Read at most `count` events of a log, and at most `most` bytes of them, but always one.
--
-- `command` is XRANGE, forward from the offset `place`, or XREVRANGE, backward from it.
-- Return {event, "ID CHAIN", …} in that order.
local function read_events(command, log, place, count, most)
  local step = command == 'XRANGE' and 1 or -1
  local last = step == 1 and '+' or '-'
  local events, bytes = {}, 0
  while count > 0 do
    local chunk = math.min(count, CHUNK)
    local entries = redis.call(command, log, string.format('%d-0', place), last, 'COUNT', chunk)
    for _, entry in ipairs(entries) do
      local body = entry[2][2]
      bytes = bytes + #body
      if bytes > most and #events > 0 then return events end
      events[#events + 1] = body
      events[#events + 1] = entry[1] .. ' ' .. string.sub(entry[2][4], 1, 8)
    end
    if #entries < chunk then return events end
    count = count - chunk
    place = tonumber(string.match(entries[chunk][1], '^%d+')) + step
  end
  return events
end
