-- The calls of sinks. A sink has a queue (stream), :held (sorted set: id -> when it may be taken
-- again, in ms), :attempts (hash: id -> count), :dead (stream) and :facts (hash: limit, last id that
-- was given, counts of handled and lost events, when somebody took last in ms).
--
-- KEYS  the hash with the filters, by name. The other keys are on the same server: no cluster.
-- ARGV  operation, name, and what the operation needs
local sinks, operation, name = KEYS[1], ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function key(part) return sinks .. ':' .. name .. ':' .. part end
local function whole(number) return string.format('%d', number) end

-- A server whose memory is full refuses the commands that may add, but not to a script that has
-- written something; and only the sinks can empty their queues. So the first command removes.
local function begin_writing() redis.call('ZREM', key('held'), '') end

local function find(stream, id)
  -- An id of another form would be an error of the script.
  if not string.match(id, '^%d+%-%d+$') then return nil end
  local found = redis.call('XRANGE', stream, id, id)
  return found[1] and found[1][2]
end

local function forget_entry(id)
  redis.call('ZREM', key('held'), id)
  redis.call('HDEL', key('attempts'), id)
end

local function silent_ms()
  local taken = tonumber(redis.call('HGET', key('facts'), 'taken') or '')
  return taken and now - taken or -1
end

local function open(filter, limit, idle)
  begin_writing()
  local known = redis.call('HGET', sinks, name)
  if known and known ~= filter then
    local silent = silent_ms()
    if silent >= 0 and silent < tonumber(idle) then return 0 end
  end
  if known ~= filter then
    redis.call('HSET', sinks, name, filter)
    -- As if it had just taken: another one waits before it replaces this one.
    redis.call('HSET', key('facts'), 'taken', whole(now))
  end
  redis.call('HSET', key('facts'), 'limit', limit)
  return 1
end

local function take(filter, limit, ms)
  if redis.call('HGET', sinks, name) ~= filter then return false end
  limit = tonumber(limit)
  begin_writing()
  redis.call('HSET', key('facts'), 'taken', whole(now))
  local given = {}
  local function give(id, fields)
    local attempt = redis.call('HINCRBY', key('attempts'), id, 1)
    redis.call('ZADD', key('held'), whole(now + ms), id)
    given[#given + 1] = {id, attempt, fields}
  end
  local due, removed = nil, 0
  repeat
    due = redis.call(
      'ZRANGEBYSCORE', key('held'), '-inf', whole(now), 'LIMIT', 0, limit - #given)
    for _, id in ipairs(due) do
      local fields = find(key('queue'), id)
      if fields then
        give(id, fields)
      else
        -- It was removed because there were too many.
        forget_entry(id)
        removed = removed + 1
      end
    end
  until #due == 0 or #given >= limit or removed >= 1000
  if #given < limit then
    local last = redis.call('HGET', key('facts'), 'last')
    local first = last and '(' .. last or '-'
    local new = redis.call('XRANGE', key('queue'), first, '+', 'COUNT', limit - #given)
    for _, entry in ipairs(new) do
      give(entry[1], entry[2])
      redis.call('HSET', key('facts'), 'last', entry[1])
    end
  end
  return given
end

local function bury(id, fields, attempt, error, most)
  local over = redis.call('XLEN', key('dead')) - most + 1
  if over > 0 then redis.call('HINCRBY', key('facts'), 'lost', over) end
  fields[#fields + 1], fields[#fields + 2] = 'attempt', attempt
  fields[#fields + 1], fields[#fields + 2] = 'error', error
  redis.call('XADD', key('dead'), 'MAXLEN', '=', most, '*', unpack(fields))
end

local function settle(most)
  begin_writing()
  local done = 0
  for place = 4, #ARGV, 5 do
    local id, attempt, fate, ms = ARGV[place], ARGV[place + 1], ARGV[place + 2], ARGV[place + 3]
    local fields = find(key('queue'), id)
    local own = redis.call('HGET', key('attempts'), id) == attempt
    if fields and fate == 'handled' then
      redis.call('XDEL', key('queue'), id)
      forget_entry(id)
      redis.call('HINCRBY', key('facts'), 'handled', 1)
      done = done + 1
    elseif fields and own then
      if fate == 'retry' then
        redis.call('ZADD', key('held'), whole(now + ms), id)
      elseif fate == 'returned' then
        redis.call('ZADD', key('held'), whole(now), id)
        redis.call('HINCRBY', key('attempts'), id, -1)
      else
        bury(id, fields, attempt, ARGV[place + 4], tonumber(most))
        redis.call('XDEL', key('queue'), id)
        forget_entry(id)
      end
      done = done + 1
    end
  end
  return done
end

local function status_of(filter)
  local first = redis.call('XRANGE', key('queue'), '-', '+', 'COUNT', 1)[1]
  local age = first and math.max(0, now - tonumber(string.match(first[1], '^%d+'))) or 0
  local facts = redis.call('HMGET', key('facts'), 'handled', 'lost')
  for place = 1, 2 do
    facts[place] = facts[place] or '0'
    if not string.match(facts[place], '^%d+$') then error('a count is no whole number') end
  end
  redis.call('HLEN', key('attempts'))
  return {
    name, filter, redis.call('XLEN', key('queue')), redis.call('ZCARD', key('held')),
    redis.call('XLEN', key('dead')), facts[1], facts[2], age, silent_ms(),
  }
end

-- Of a sink with a key that another program has spoiled: its name, its filter, and the error.
local function status()
  local all, found = redis.call('HGETALL', sinks), {}
  for place = 1, #all, 2 do
    name = all[place]
    local is_whole, answer = pcall(status_of, all[place + 1])
    if not is_whole then
      -- A text, or a table since Redis 7.
      local text = type(answer) == 'table' and answer.err or tostring(answer)
      answer = {name, all[place + 1], text}
    end
    found[#found + 1] = answer
  end
  return found
end

local function replay()
  local found = 0
  for place = 3, #ARGV do
    local fields = find(key('dead'), ARGV[place])
    if fields then
      -- Without the last two: attempt and error.
      redis.call('XADD', key('queue'), '*', unpack(fields, 1, #fields - 4))
      redis.call('XDEL', key('dead'), ARGV[place])
      found = found + 1
    end
  end
  return found
end

local function discard()
  local found = 0
  for place = 3, #ARGV do
    if find(key('dead'), ARGV[place]) then
      found = found + redis.call('XDEL', key('dead'), ARGV[place])
    end
  end
  return found
end

if operation == 'open' then return open(ARGV[3], ARGV[4], ARGV[5]) end
if operation == 'take' then return take(ARGV[3], ARGV[4], ARGV[5]) end
if operation == 'settle' then return settle(ARGV[3]) end
if operation == 'status' then return status() end
if operation == 'replay' then return replay() end
if operation == 'discard' then return discard() end
if operation == 'dead' then
  local first = ARGV[3] == '' and '-' or '(' .. ARGV[3]
  return redis.call('XRANGE', key('dead'), first, '+', 'COUNT', ARGV[4])
end
redis.call('DEL', key('queue'), key('held'), key('attempts'), key('dead'), key('facts'))
return redis.call('HDEL', sinks, name)
