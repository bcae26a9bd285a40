-- Put the events of an append into the queues of the sinks that they match. In front of append.lua,
-- whose script has written them already: so nothing here may raise.
--
-- The rule is that of SinkFilter.matches() in core/sinks.py; one test has both.
local function matches_topic(patterns, topic)
  for _, pattern in ipairs(patterns) do
    if pattern == topic then return true end
    local first = string.sub(pattern, 1, -2)
    if string.sub(pattern, -1) == '*' and string.sub(topic, 1, #first) == first then return true end
  end
  return false
end

-- Of a queue whose sink has no limit that can be read: the default of the setting.
local usual_limit = '100000'

local function offer_to_sink(base, filter, topic, epoch, owner, events, marks)
  if not matches_topic(filter.topics, topic) then return end
  local types = {}
  for _, wanted in ipairs(filter.types) do types[wanted] = true end
  local lost, added = 0, 0
  for number, event in ipairs(events) do
    local event_type = string.match(event, '^{"offset":%d+,"type":"([^"]*)"')
    if #filter.types == 0 or types[event_type] then
      local entry = redis.pcall('XADD', base .. ':queue', '*', 'topic', topic, 'event', event,
        'draft', string.sub(marks[number], 10), 'epoch', epoch, 'owner', owner or '')
      if type(entry) == 'table' and entry.err then lost = lost + 1 else added = added + 1 end
    end
  end
  -- Without HINCRBY and XLEN, which users of an ACL that knows no sinks may not run.
  local facts = base .. ':facts'
  local known = redis.pcall('HMGET', facts, 'limit', 'lost')
  if added > 0 then
    local limit = known[1]
    if not limit or not is_whole(limit) then limit = usual_limit end
    local removed = redis.pcall('XTRIM', base .. ':queue', 'MAXLEN', '=', limit)
    lost = lost + (tonumber(removed) or 0)
  end
  if lost > 0 then
    redis.pcall('HSET', facts, 'lost', string.format('%d', (tonumber(known[2]) or 0) + lost))
  end
end

-- sinks: the key with the filters, a hash by name; nil on a node of a cluster
-- meta: the first key of the topic, which has its name
-- marks: of each event, as the log has them: "CHAIN PRODUCER NUMBER"
local function offer_to_sinks(sinks, meta, epoch, owner, events, marks)
  local filters = sinks and redis.pcall('HGETALL', sinks) or {}
  if filters.err then return end
  for place = 1, #filters, 2 do
    local base = sinks .. ':' .. filters[place]
    -- "PREFIX:{TOPIC}:meta", and the key with the filters is "PREFIX:sinks".
    local topic = string.sub(meta, #sinks - 3, -7)
    local is_json, filter = pcall(cjson.decode, filters[place + 1])
    -- Another program may have written one, with any values in it.
    if is_json then pcall(offer_to_sink, base, filter, topic, epoch, owner, events, marks) end
  end
end
