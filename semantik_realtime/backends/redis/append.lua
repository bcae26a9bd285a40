-- Append a batch of drafts of one topic, and publish what was appended.
--
-- KEYS  meta log state fence seen          (all of one slot)
-- ARGV  1: header, JSON   2..: the drafts' bodies without the "{" they begin with:
--       cutting it off here would copy each body once more
-- header: epoch (for a new log), owner, events, ttl_ms, grace_ms, keys, bytes, channel,
--         runs: [producer, change, key, job, attempt, terminal, own, number, digests]
--               drafts of which only the number grows, by 1, and the digest differs;
--               change "" | "set" | "drop"; attempt -1: the newest is meant;
--               own: 1 if the topic is the job's own
-- Gives "EPOCH OFFSET CHAIN,receipt,receipt …": where the log ended before, and for each draft
--         "a" | "d OFFSET CHAIN" | "d" | "stale" | "closed" | "too_big" | "too_many_keys"
--       What was appended is dense, so its positions follow; if all was, no receipt is given.
local meta, log, state, fence, seen = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local head = cjson.decode(ARGV[1])
local position = redis.call('HMGET', meta, 'epoch', 'offset', 'chain', 'owner', 'deleted')
local receipts = {}

if position[5] then
  for i = 1, #ARGV - 1 do receipts[i] = 'closed' end
  return '- 0 0,' .. table.concat(receipts, ',')
end

local epoch = position[1]
local fresh_log = not epoch
if fresh_log then
  -- Expiry or eviction may have taken the meta hash and left the log. Its
  -- offsets belong to the old epoch; appending 1-0 after them would be refused.
  redis.call('DEL', log, state, fence, seen)
  epoch = head.epoch
end
local offset = tonumber(position[2] or '0')
local chain = tonumber(position[3] or '0')
local owner = position[4]
local prev = string.format('%d', offset)
local answer = epoch .. ' ' .. prev .. ' ' .. string.format('%d', chain)

local numbers, standings, states = {}, {}, {}
local key_count = nil

local function standing_of(job)
  local standing = standings[job]
  if not standing then
    standing = read_standing(fence, job)
    standings[job] = standing
  end
  return standing
end

local function first_position(producer, number)
  local wanted = ' ' .. producer .. ' ' .. number
  for _, entry in ipairs(redis.call('XREVRANGE', log, '+', '-')) do
    local mark = entry[2][4]
    if string.sub(mark, 9) == wanted then
      return ' ' .. string.match(entry[1], '^%d+') .. ' ' .. string.sub(mark, 1, 8)
    end
  end
  return ''
end

local function is_known_key(key)
  if states[key] ~= nil then return states[key] ~= false end
  return redis.call('HEXISTS', state, key) == 1
end

-- Make room for a new key: the states of the jobs that ended longest ago go, a quarter at once.
local function forget_ended()
  local ended = {}
  local all = redis.call('HGETALL', fence)
  for i = 1, #all, 2 do
    local ended_at = tonumber(string.match(all[i + 1], '^%d+ (-?%d+) '))
    if ended_at > 0 and not standings[all[i]] and is_known_key(all[i]) then
      ended[#ended + 1] = {ended_at, all[i]}
    end
  end
  table.sort(ended, function(a, b) return a[1] < b[1] end)
  for i = 1, math.min(#ended, math.max(1, math.floor(head.keys / 4))) do
    local job = ended[i][2]
    redis.call('HDEL', fence, job)
    states[job] = false
    key_count = key_count - 1
  end
  return key_count < head.keys
end

local events, chains = {}, {}
local own_end = false
local function append(run, number, digest)
  local producer, change, key, job, attempt = run[1], run[2], run[3], run[4], run[5]
  local body = ARGV[#receipts + 2]
  local known = numbers[producer]
  if not known then
    known = tonumber(string.match(redis.call('HGET', seen, producer) or '0', '^%d+'))
  end
  local refusal = nil
  local standing = nil
  if number <= known then
    refusal = 'd' .. first_position(producer, string.format('%d', number))
  elseif #body >= head.bytes then
    refusal = 'too_big'
  elseif job ~= '' then
    standing = standing_of(job)
    if attempt < 0 then attempt = standing[1] end
    if attempt < standing[1] then
      refusal = 'stale'
    elseif attempt == standing[1] and standing[2] > 0 then
      refusal = 'closed'
    end
  end
  if not refusal and change == 'set' and not is_known_key(key) then
    key_count = key_count or redis.call('HLEN', state)
    if key_count >= head.keys and not forget_ended() then
      refusal = 'too_many_keys'
    else
      key_count = key_count + 1
    end
  end
  if refusal then
    receipts[#receipts + 1] = refusal
  else
    offset = offset + 1
    chain = (chain * 1000003 + digest) % 4294967296
    local text = string.format('%d', offset)
    local chain_text = string.format('%08x', chain)
    local event = '{"offset":' .. text .. ',' .. body
    redis.call('XADD', log, text, 'e', event,
      'm', chain_text .. ' ' .. producer .. ' ' .. string.format('%d', number))
    events[#events + 1] = event
    chains[#chains + 1] = chain_text
    if change == 'set' then
      states[key] = event
    elseif change == 'drop' then
      if key_count and is_known_key(key) then key_count = key_count - 1 end
      states[key] = false
    end
    local ends = run[6] == 1
    if standing and (standing[1] ~= attempt or ends or standing[2] >= 0) then
      standing[1] = attempt
      standing[2] = ends and offset or -offset
      standing.changed = true
    end
    numbers[producer] = number
    own_end = run[6] == 1 and run[7] == 1
    receipts[#receipts + 1] = 'a'
  end
end

for _, run in ipairs(head.runs) do
  for place, digest in ipairs(run[9]) do append(run, run[8] + place - 1, digest) end
end

if #events > 0 then
  redis.call('HSET', meta, 'offset', string.format('%d', offset),
    'chain', string.format('%d', chain))
  if fresh_log then redis.call('HSET', meta, 'epoch', epoch) end
  if not owner and head.owner ~= '' then redis.call('HSET', meta, 'owner', head.owner) end
  redis.call('XTRIM', log, 'MAXLEN', '=', head.events)
  for key, event in pairs(states) do
    if event then
      redis.call('HSET', state, key, event)
    else
      redis.call('HDEL', state, key)
    end
  end
  local has_news = false
  for job, standing in pairs(standings) do
    if standing.changed then
      write_standing(fence, job, standing)
      has_news = true
    end
  end
  if has_news then forget_stateless(fence, state, head.keys) end
  for producer, number in pairs(numbers) do
    local added = redis.call('HSET', seen, producer, string.format('%d %d', number, offset))
    if added == 1 and redis.call('HLEN', seen) > 256 then
      -- A producer is a process; a feed outlives many. The ones that were silent longest go.
      local all, by_age = redis.call('HGETALL', seen), {}
      for i = 1, #all, 2 do
        by_age[#by_age + 1] = {tonumber(string.match(all[i + 1], '(%d+)$')), all[i]}
      end
      table.sort(by_age, function(a, b) return a[1] < b[1] end)
      for i = 1, 128 do redis.call('HDEL', seen, by_age[i][2]) end
    end
  end
  local expiry = own_end and head.grace_ms or head.ttl_ms
  for i = 1, 5 do redis.call('PEXPIRE', KEYS[i], expiry) end
  redis.call('PUBLISH', head.channel,
    epoch .. ' ' .. prev .. ' ' .. table.concat(chains, ' ') .. '\n'
      .. table.concat(events, '\n'))
end
if #events == #receipts then return answer end
return answer .. ',' .. table.concat(receipts, ',')
