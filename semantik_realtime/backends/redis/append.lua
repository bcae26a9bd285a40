-- Append a batch of drafts of one topic, and publish the events.
--
-- KEYS  meta log state fence seen          (all in one slot), and the filters of the sinks, except
--       on a node of a cluster (see sink_offer.lua)
-- ARGV  1: header, JSON
--       2..: the bodies of the drafts, each without its first character, "{"; to cut it off here
--       would copy each body
-- header: epoch, of a new log
--         events, keys, bytes: the limits of the log, of :state, and of a body
--         producers: [kept, seconds, most]: how many of :seen are kept, how long the others, and
--               how many at most
--         ttl_ms, grace_ms, open_ms: how long to keep the topic; grace_ms after the end of its own
--               job, open_ms while that has not ended
--         own: the job whose own topic it is, if a draft with its key is of another job, else absent
--         due_ms: when that job is due; absent if it waits for no time
--         channel, where the events are published
--         sharded: 1 on a node of a cluster, else absent
--         runs: [producer, change, key, job, attempt, terminal, own, number, digests, owner,
--               begins], the drafts in order; those of a run differ in the digest, and in the
--               number, which grows by 1
--               change "" | "set" | "drop"; attempt -1: the newest; own: 1 if the topic is the
--               job's own; number: of the first draft; owner "": none; begins: 1 if it is the
--               first draft of its attempt
-- Return "EPOCH OFFSET CHAIN,receipt,receipt …": the end of the log before, and for each draft
--         "a" | "a EPOCH OFFSET CHAIN" | "d OFFSET CHAIN" | "d" | "stale" | "closed" |
--         "foreign_owner" | "too_big" | "too_many_keys"
--         appended, the same to the epoch that ended in this batch, duplicate with or without the
--         position of its event, or refused. The caller counts the positions of appended events
--         on. Receipts that are all "a" are left out. The first character is "!" if the events
--         could not be published.
local meta, log, state, fence, seen = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local head = cjson.decode(ARGV[1])
local position = redis.pcall('HMGET', meta, 'epoch', 'offset', 'chain', 'owner', 'deleted', 'open')
if position.err then
  if not string.find(position.err, 'WRONGTYPE', 1, true) then redis.call('HMGET', meta, 'epoch') end
  position = {}
end
local receipts = {}

if position[5] then
  for i = 1, #ARGV - 1 do receipts[i] = 'closed' end
  return '- 0 0,' .. table.concat(receipts, ',')
end

local epoch = position[1]
-- Another program may have written what is no position: then this log cannot go on.
if not is_whole(position[2] or '0') or not is_whole(position[3] or '0') then epoch = false end
local is_new = not epoch
if is_new then
  -- Expiry or eviction may have deleted the meta hash and left the log. Its offsets belong to
  -- the old epoch, and the server would refuse to append 1-0 after them.
  redis.call('DEL', meta, log, state, fence, seen)
  epoch, position = head.epoch, {}
end
local offset = tonumber(position[2] or '0')
local chain = tonumber(position[3] or '0')
local owner = position[4]
local sets_owner = false
local open = position[6] or ''
-- The end of the log before, as text.
local prev, prev_chain = string.format('%d', offset), string.format('%d', chain)

-- What the batch changes, written to the keys at the end: the last number of each producer, the
-- attempt state of each job, and the last event of each key (false: the key is deleted).
local numbers, attempts, states = {}, {}, {}
-- The attempts whose first draft is stale, by job and number.
local stale_attempts = {}
-- How many keys have a state; nil until that is needed.
local key_count = nil

-- What a topic that begins with this batch has stored: nothing, so it is not read.
local is_empty = is_new

local function attempt_of(job)
  local current = attempts[job]
  if not current then
    current = is_empty and {0, 0, ''} or read_attempt(fence, job)
    attempts[job] = current
  end
  return current
end

-- The position of the event that was appended for a draft, or '' if the log no longer keeps it.
local function position_of(producer, number)
  local wanted = ' ' .. producer .. ' ' .. number
  for _, entry in ipairs(redis.call('XREVRANGE', log, '+', '-')) do
    local mark = entry[2][4] or ''
    if string.sub(mark, 9) == wanted then
      return ' ' .. string.match(entry[1], '^%d+') .. ' ' .. string.sub(mark, 1, 8)
    end
  end
  return ''
end

local function is_known_key(key)
  if states[key] ~= nil then return states[key] ~= false end
  return not is_empty and redis.call('HEXISTS', state, key) == 1
end

-- Make room for a new key: drop the states of the jobs that ended longest ago, a quarter of the
-- limit at once. Return true if there is room.
local function drop_ended()
  local ended = {}
  local all = redis.call('HGETALL', fence)
  for i = 1, #all, 2 do
    local ended_at = tonumber(string.match(all[i + 1], '^%d+ (-?%d+) ')) or 0
    if ended_at > 0 and not attempts[all[i]] and is_known_key(all[i]) then
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

-- What is appended, with the mark of each entry.
local events, chains, marks = {}, {}, {}

-- Begin a new epoch without events and states; the fence stays.
local function begin_again()
  local first, appended = offset - #events, 0
  for place, receipt in ipairs(receipts) do
    if receipt == 'a' then
      appended = appended + 1
      receipts[place] =
        string.format('a %s %d %s', epoch, first + appended, chains[appended])
    elseif string.sub(receipt, 1, 2) == 'd ' then
      receipts[place] = 'd'
    end
  end
  -- With the next ones they are not: these have another epoch and no owner.
  if #events > 0 then offer_to_sinks(KEYS[6], meta, epoch, owner, events, marks) end
  redis.call('DEL', log, state)
  open = ''
  epoch, offset, chain, prev, prev_chain, is_new = head.epoch, 0, 0, '0', '0', true
  events, chains, marks, states, key_count = {}, {}, {}, {}, nil
end

-- Add an entry. If another program has added one with a later id, the server accepts none of ours
-- before it: then the log is emptied and goes on in a new epoch. The states stay.
local function add_entry(id, event, mark)
  local added = redis.pcall('XADD', log, id, 'e', event, 'm', mark)
  if type(added) ~= 'table' or not added.err then return end
  local is_foreign = string.find(added.err, 'smaller than', 1, true)
    or string.find(added.err, 'WRONGTYPE', 1, true)
  if #events == 0 and is_foreign then
    redis.call('DEL', log)
    epoch, is_new = head.epoch, true
  end
  redis.call('XADD', log, id, 'e', event, 'm', mark)
end

-- Whether the last event ended the topic's own job, and that job, if the batch has drafts of it.
local own_end, own = false, head.own
local function append(run, number, digest)
  local producer, change, key, job, attempt = run[1], run[2], run[3], run[4], run[5]
  local draft_owner = run[10]
  local body = ARGV[#receipts + 2]
  local last_number = numbers[producer]
  if not last_number and is_empty then
    last_number = 0
  elseif not last_number then
    last_number = tonumber(string.match(redis.call('HGET', seen, producer) or '0', '^%d+')) or 0
  end
  local refusal = nil
  local current = nil
  if number <= last_number then
    refusal = 'd' .. position_of(producer, string.format('%d', number))
  elseif draft_owner ~= '' and owner and owner ~= draft_owner then
    refusal = 'foreign_owner'
  elseif #body >= head.bytes then
    refusal = 'too_big'
  elseif job ~= '' then
    -- The rule of check_fence() in core/fence.py; the contract suite tests both.
    current = attempt_of(job)
    if attempt < 0 then attempt = current[1] end
    local begins = run[11] == 1
    if attempt < current[1] or (begins and attempt == current[1])
      or stale_attempts[job .. ' ' .. attempt] then
      refusal = 'stale'
      if begins then stale_attempts[job .. ' ' .. attempt] = true end
    elseif attempt == current[1] and current[2] > 0 then
      refusal = 'closed'
    end
  end
  if not refusal and draft_owner ~= '' and not owner then
    -- The rule of check_owner() in core/ownership.py; the contract suite tests both.
    if offset > 0 then begin_again() end
    owner, sets_owner = draft_owner, true
  end
  if not refusal and change == 'set' and not is_known_key(key) then
    key_count = key_count or (is_empty and 0 or redis.call('HLEN', state))
    if key_count >= head.keys and not drop_ended() then
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
    local mark = chain_text .. ' ' .. producer .. ' ' .. string.format('%d', number)
    add_entry(text, event, mark)
    events[#events + 1] = event
    marks[#marks + 1] = mark
    chains[#chains + 1] = chain_text
    if change == 'set' then
      states[key] = event
    elseif change == 'drop' then
      if key_count and is_known_key(key) then key_count = key_count - 1 end
      states[key] = false
    end
    local ends = run[6] == 1
    if current and (current[1] ~= attempt or ends or current[2] >= 0) then
      current[1] = attempt
      current[2] = ends and offset or -offset
      current.changed = true
    end
    numbers[producer] = number
    if run[7] == 1 then own = job end
    own_end = run[6] == 1 and run[7] == 1
    receipts[#receipts + 1] = 'a'
  end
end

for _, run in ipairs(head.runs) do
  for place, digest in ipairs(run[9]) do append(run, run[8] + place - 1, digest) end
end

-- Whether the topic is open after the batch.
local function is_open()
  if not own then return open ~= '' end
  local current, new_state = attempts[own], states[own]
  if new_state == false or (current and current[2] > 0) then return false end
  if new_state then return attempt_of(own)[2] <= 0 end
  if open ~= '' then return true end
  return current ~= nil and not is_empty and redis.call('HEXISTS', state, own) == 1
end

if #events > 0 then
  local due = tonumber(open) or 0
  if head.due_ms and head.due_ms > due then due = head.due_ms end
  open = is_open() and string.format('%d', due) or ''
  local place = {'offset', string.format('%d', offset), 'chain', string.format('%d', chain)}
  if is_new then
    place[#place + 1], place[#place + 2] = 'epoch', epoch
  end
  if sets_owner then
    place[#place + 1], place[#place + 2] = 'owner', owner
  end
  if open ~= (position[6] or '') then
    place[#place + 1], place[#place + 2] = 'open', open
  end
  redis.call('HSET', meta, unpack(place))
  if offset > head.events then redis.call('XTRIM', log, 'MAXLEN', '=', head.events) end
  -- Whether one of the keys may be new, and so without an expiry.
  local is_made = is_new
  for key, event in pairs(states) do
    if event then
      if redis.call('HSET', state, key, event) == 1 then is_made = true end
    else
      redis.call('HDEL', state, key)
    end
  end
  local may_be_many = is_new and not is_empty
  for job, current in pairs(attempts) do
    if current.changed and write_attempt(fence, job, current) == 1 then
      may_be_many, is_made = true, true
    end
  end
  for _, event in pairs(states) do
    if not event then may_be_many = true end
  end
  if may_be_many and not (is_empty and #receipts <= head.keys) then
    drop_stateless(fence, state, head.keys)
  end
  -- A producer is a process, and a user's feed outlives many of them. One that has appended nothing
  -- for long sends nothing again either.
  local now, added = tonumber(redis.call('TIME')[1]), 0
  for producer, number in pairs(numbers) do
    added = added + redis.call('HSET', seen, producer, string.format('%d %d', number, now))
  end
  local kept, most = head.producers[1], head.producers[3]
  if added > 0 and not (is_empty and #receipts <= kept) then
    local count = redis.call('HLEN', seen)
    -- Not with each new one: it takes a walk over all.
    if count > most or math.floor(count / kept) > math.floor((count - added) / kept) then
      local all, by_age = redis.call('HGETALL', seen), {}
      for i = 1, #all, 2 do
        by_age[#by_age + 1] = {tonumber(string.match(all[i + 1], '(%d+)$')) or 0, all[i]}
      end
      table.sort(by_age, function(a, b) return a[1] < b[1] end)
      for i = 1, count - kept do
        if by_age[i][1] > now - head.producers[2] and count - i < most then break end
        redis.call('HDEL', seen, by_age[i][2])
      end
    end
  end
  local expiry = own_end and head.grace_ms or head.ttl_ms
  if open ~= '' then expiry = open_expiry(head.open_ms, due) end
  -- The topic is kept at least that long, and up to a 64th longer, so that not every append has to
  -- set five expiries, which the server would also write to its file and to its replicas. All keys
  -- have the same one. That of the log tells whether the log is new.
  local most, left = expiry + math.floor(expiry / 64), redis.call('PTTL', log)
  if is_made or added > 0 or left < expiry or left > most then
    for i = 1, 5 do redis.call('PEXPIRE', KEYS[i], most) end
  end
  offer_to_sinks(KEYS[6], meta, epoch, owner, events, marks)
end
local mark = ''
local reply = epoch .. ' ' .. prev .. ' ' .. prev_chain
if #events > 0 then
  local message =
    reply .. ' ' .. table.concat(chains, ' ') .. '\n' .. table.concat(events, '\n')
  -- A user who may not publish there has appended all the same.
  local published
  if head.sharded then
    published = redis.pcall('SPUBLISH', head.channel, message)
  else
    published = redis.pcall('PUBLISH', head.channel, message)
  end
  if type(published) == 'table' and published.err then mark = '!' end
end
reply = mark .. reply
if #events == #receipts then return reply end
return reply .. ',' .. table.concat(receipts, ',')
